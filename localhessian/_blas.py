"""How many threads BLAS takes, which is one number for the whole process."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import threadpoolctl

LONG = 2**20
"""Numbers of a vector or a matrix over which a call of BLAS takes as long as the scheduler lets others run: some ms."""
_lock = threading.Lock()
_asked: dict[object, int] = {}
"""By what runs now, the latest last."""
_first: list[Any] = []
"""The limits of the first of them, which know what was before."""


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """So many until this ends; of several at once the latest that still runs decides, and the last restores what was.

    Each by itself would restore what it met, which may be another's limit: for the rest of the process.
    """
    one = object()
    with _lock:
        limits = _limited(count)
        if not _asked:
            _first.append(limits)
        _asked[one] = count
    try:
        yield
    finally:
        with _lock:
            del _asked[one]
            if _asked:
                _limited(next(reversed(_asked.values())))
            else:
                _first.pop().restore_original_limits()


def threads_that_pay(numbers: float) -> contextlib.AbstractContextManager[None]:
    """One thread for calls of BLAS on arrays of so few numbers; for large ones as many as there are.

    Threads wait for each other at every call. Where another process has the core of one of them, all wait until the
    scheduler gives it back: tens of times as long as the call takes by one thread (`benchmarks/busy.py`).
    """
    return blas_threads(1) if numbers <= LONG else contextlib.nullcontext()


def blas_threads_now() -> int:
    """How many it takes; of several libraries the most."""
    return max([1, *(pool["num_threads"] for pool in _controller().info())])


def _limited(count: int) -> Any:
    return _controller().limit(limits=count)


@functools.cache
def _controller() -> threadpoolctl.ThreadpoolController:
    """Of NumPy's and SciPy's BLAS, which are loaded with this package.

    To look for them among all that is loaded takes 1.4 ms, as long as many a decomposition.
    """
    return threadpoolctl.ThreadpoolController().select(user_api="blas")
