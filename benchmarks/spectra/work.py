"""What every contender does and reports."""

import resource
from collections.abc import Callable

TOLERANCE = 1e-3
"""Of the true residual, relative to the eigenvalue."""
STARTS = (0, 1, 2)
"""Random starts: how many products one takes is luck, by a third."""

Sides = dict[str, float]
"""By parameters (W) and by inputs (z)."""


def mean_over_starts(run: Callable[[int], tuple[Sides, Sides]]) -> tuple[Sides, Sides]:
    """Seconds and products of run(start)."""
    seconds, products = zip(*(run(start) for start in STARTS), strict=True)
    mean = lambda parts: {side: sum(part[side] for part in parts) / len(STARTS) for side in ("W", "z")}
    return mean(seconds), mean(products)


def megabytes() -> float:
    """The peak of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
