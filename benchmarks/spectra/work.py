"""What every contender does and reports."""

import os
import resource
import time
from collections.abc import Callable

TOLERANCE = 1e-3
"""Of the true residual, relative to the eigenvalue."""
STARTS = (0, 1, 2)
"""Random starts: how many products one takes is luck, by a third."""

DEVICE = os.environ.get("BENCHMARK_DEVICE", "cpu")
"""Of the work: `cpu` (one core; seconds of that core) or `cuda` (seconds of the clock)."""

clock = time.process_time if DEVICE == "cpu" else time.perf_counter

Sides = dict[str, float]
"""By parameters (W) and by inputs (z)."""


def mean_over_starts(run: Callable[[int], tuple[Sides, Sides]]) -> tuple[Sides, Sides]:
    """Seconds and products of run(start)."""
    taken, products = zip(*(run(start) for start in STARTS), strict=True)
    mean = lambda parts: {side: sum(part[side] for part in parts) / len(STARTS) for side in ("W", "z")}
    return mean(taken), mean(products)


def megabytes() -> float:
    """The peak of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
