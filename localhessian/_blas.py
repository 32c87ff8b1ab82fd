"""How many threads BLAS takes, which is one number for the whole process."""

import contextlib
import threading
from collections.abc import Iterator

import threadpoolctl

_lock = threading.Lock()
_asked: list[int] = []
"""By what runs now, the latest last."""
_first: list[threadpoolctl.threadpool_limits] = []
"""The limits of the first of them, which know what was before."""


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """So many until this ends; of several at once the latest that still runs decides, and the last restores what was.

    Each by itself would restore what it met, which may be another's limit: for the rest of the process.
    """
    with _lock:
        limits = threadpoolctl.threadpool_limits(count, "blas")
        if not _asked:
            _first.append(limits)
        _asked.append(count)
    try:
        yield
    finally:
        with _lock:
            _asked.remove(count)
            if _asked:
                threadpoolctl.threadpool_limits(_asked[-1], "blas")
            else:
                _first.pop().restore_original_limits()
