"""Rank correlation with an interval, where measurements come in groups that are not independent of each other."""

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 1000
"""Of the groups; the ends of an interval of 95 % then vary by some hundredths."""


class Correlation(NamedTuple):
    """A correlation coefficient with its interval; NaN where one of the two does not vary."""

    value: float
    low: float
    high: float
    networks: int

    @property
    def positive(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0


def rank_correlation(
    one: np.ndarray, two: np.ndarray, groups: np.ndarray, strata: np.ndarray | None = None, level: float = 0.95
) -> Correlation:
    """Spearman's rank correlation, its interval by the bootstrap over whole groups (percentiles).

    Args:
        one: Numbers, shape `(n,)`; infinite ones rank highest.
        two: As many.
        groups: To which group each belongs; groups are drawn with replacement, their members stay together.
        strata: Ranks are taken within each of these, and centered there; None: all in one.
        level: Coverage.

    Returns:
        The coefficient over all n, with the interval. Resamples in which one of the two does not vary are left out.

    Example:
        >>> import numpy as np
        >>> from localhessian.lab.claims._correlation import rank_correlation
        >>> round(rank_correlation(np.arange(9.0), np.arange(9.0) ** 3, np.arange(9)).value, 6)
        1.0
    """
    strata = np.zeros(len(one), int) if strata is None else np.unique(strata, return_inverse=True)[1]
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    random = np.random.default_rng(0)
    draws = [
        np.concatenate([members[i] for i in random.integers(len(members), size=len(members))]) for _ in range(RESAMPLES)
    ]
    found = np.array([_spearman(one[draw], two[draw], strata[draw]) for draw in draws])
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2]) if np.isfinite(found).any() else (np.nan,) * 2
    return Correlation(_spearman(one, two, strata), float(low), float(high), len(one))


def _spearman(one: np.ndarray, two: np.ndarray, strata: np.ndarray) -> float:
    a, b = (np.zeros(len(values)) for values in (one, two))
    for stratum in np.unique(strata):
        at = strata == stratum
        for ranks, values in ((a, one), (b, two)):
            own = rankdata(values[at])
            ranks[at] = own - own.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")
