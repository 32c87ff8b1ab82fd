"""Rank correlation with an interval, where measurements come in groups that are not independent of each other."""

from typing import NamedTuple

import numpy as np

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
    strata = np.zeros(len(one), int) if strata is None else strata
    names, group = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    times = (drawn[:, :, None] == np.arange(len(names))).sum(1)  # that each group is in a resample
    found = _spearman(one, two, strata, times[:, group])
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2]) if np.isfinite(found).any() else (np.nan,) * 2
    (value,) = _spearman(one, two, strata, np.ones((1, len(one)), int))
    return Correlation(float(value), float(low), float(high), len(one))


def _spearman(one: np.ndarray, two: np.ndarray, strata: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Of samples that hold each number so many times, shape `(samples, n)`: of all samples at once."""
    a, b = (_ranks(values, strata, times) for values in (one, two))
    scale = np.sqrt((times * a * a).sum(1) * (times * b * b).sum(1))
    return np.divide((times * a * b).sum(1), scale, out=np.full(len(times), np.nan), where=scale > 0)


def _ranks(values: np.ndarray, strata: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Within each stratum, centered there; equal numbers share the mean of their ranks, NaN has none."""
    ranks = np.zeros(times.shape)
    for stratum in np.unique(strata):
        at = np.flatnonzero(strata == stratum)
        distinct, place = np.unique(values[at], return_inverse=True)
        equal = times[:, at] @ (place[:, None] == np.arange(len(distinct)))
        upto = equal.cumsum(1)
        ranks[:, at] = (upto - (equal + upto[:, -1:]) / 2)[:, place]
    return np.where(np.isnan(values), np.nan, ranks)
