"""The eigenvalues behind a row as a curve."""

import numpy as np

from localhessian.analysis.rows._row import RowSpectrum

FLOOR = 1e-12
"""Relative to the largest: nothing below is drawn."""


def curve(spectrum: RowSpectrum, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The share of the dimension, 0 to 1, and the eigenvalues over the largest, from the largest down.

    Of several samples the median; zero eigenvalues are NaN, and count as smallest in it.
    """
    counts = np.atleast_2d(spectrum.multiplicities)
    rows = [np.repeat(values, count) for values, count in zip(np.atleast_2d(spectrum.eigenvalues), counts, strict=True)]
    length = max(map(len, rows))
    values = np.zeros((len(rows), length))
    for line, row in zip(values, rows, strict=True):
        line[: len(row)] = np.where(np.isfinite(row), row, 0)[::-1]
    top = values.max(axis=1, keepdims=True)
    median = np.median(values / np.where(top > 0, top, 1), axis=0)
    share = (np.arange(length) + 0.5) / max(size, length, 1)
    return share, np.where(median > 0, median, np.nan)
