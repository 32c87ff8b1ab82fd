"""How many threads BLAS takes, which is one number for the whole process."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import threadpoolctl

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
