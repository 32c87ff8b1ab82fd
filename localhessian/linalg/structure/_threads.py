"""Many LAPACK calls side by side: one thread for each core, one core for each call."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from localhessian._blas import blas_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_for(count: int) -> int:
    """Of matrices of one order that wait to be decomposed: a core for each, or all of them for one after the other."""
    return cores() if count >= cores() else 1


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """The results in order; an interruption waits for no more than the calls that run."""
    executor = ThreadPoolExecutor(workers)
    try:
        # A decomposition of a few hundred rows gains nothing from the threads of BLAS, and loses to several that do.
        with blas_threads(1):
            yield from executor.map(work, items)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
