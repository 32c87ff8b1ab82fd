"""How many threads BLAS takes, which is one number for the whole process."""

import contextlib
import threading
from collections.abc import Iterator

import threadpoolctl

_lock = threading.Lock()
_asked: dict[object, int] = {}
"""By what runs now, the latest last."""
_first: list[threadpoolctl.threadpool_limits] = []
"""The limits of the first of them, which know what was before."""


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """So many until this ends; of several at once the latest that still runs decides, and the last restores what was.

    Each by itself would restore what it met, which may be another's limit: for the rest of the process.
    """
    one = object()
    with _lock:
        limits = threadpoolctl.threadpool_limits(count, "blas")
        if not _asked:
            _first.append(limits)
        _asked[one] = count
    try:
        yield
    finally:
        with _lock:
            del _asked[one]
            if _asked:
                threadpoolctl.threadpool_limits(next(reversed(_asked.values())), "blas")
            else:
                _first.pop().restore_original_limits()
