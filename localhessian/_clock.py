"""What work takes, beside other work too."""

import time
from collections.abc import Callable
from typing import TypeVar

import jax

Result = TypeVar("Result")
ENOUGH = 0.2
"""Seconds after which a call is not repeated: what else runs makes less of a difference then."""


def timed_call(work: Callable[[], Result], *, waits: bool = False) -> tuple[Result, float]:
    """What it returns, and its seconds; what it leaves to a device it must wait for.

    On a CPU the processor's time where that is less: what waits for its turn beside other processes takes longer by the
    clock, what runs on several cores takes more of the processor. The clock's of what `waits` for data (batches that
    are loaded), and of what is over before the system counts (by ticks of 16 ms on some).
    """
    clock, processor = time.perf_counter(), time.process_time()
    found = work()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    counts = jax.default_backend() == "cpu" and processor > 0 and not waits
    return found, min(clock, processor) if counts else clock


def least_seconds(work: Callable[[], object], calls: int = 3, *, waits: bool = False) -> float:
    """Of some calls the shortest, after one that compiles what it needs; of fewer where they take long."""
    work()
    found: list[float] = []
    while len(found) < calls and sum(found) < ENOUGH:
        found.append(timed_call(work, waits=waits)[1])
    return min(found)
