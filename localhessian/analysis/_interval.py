"""Means with their intervals; without several runs there is no result."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

MINIMUM = 5
"""Runs below which no interval is claimed."""


class Mean(NamedTuple):
    """A mean over runs (or batches), with its 95 % interval by Student's t.

    `low` and `high` are NaN below the fewest runs that an interval is claimed for, and where a value is not finite.
    """

    mean: float
    low: float
    high: float
    runs: int


def interval(values: Sequence[float] | np.ndarray, level: float = 0.95, minimum: int = MINIMUM) -> Mean:
    """Mean and interval of independent runs: mean +- t s / sqrt(n), t the quantile (1 + p)/2 of Student with n - 1.

    Args:
        values: One for each run, at least two.
        level: Coverage p, if the values are normal.
        minimum: Runs below which no interval is claimed.

    Raises:
        ValueError: Less than two runs.

    Example:
        >>> from localhessian.lab import interval
        >>> [round(value, 3) for value in interval([1.0, 2.0, 3.0, 4.0, 5.0])[:3]]
        [3.0, 1.037, 4.963]
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n < 2:
        raise ValueError(f"a mean over {n} run is no result: give `interval` the values of several runs.")
    mean = float(values.mean())
    if n < minimum or not np.isfinite(values).all():
        return Mean(mean, float("nan"), float("nan"), n)
    half = float(stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(n))
    return Mean(mean, mean - half, mean + half, n)
