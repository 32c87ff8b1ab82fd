"""The spectrum of a row as a line, thinned to what a screen shows."""

import numpy as np

from localhessian.analysis.rows import FLOOR, Analyzed, Row, curve

_SIZE = 90, 18
"""In pixels."""


def thinned(report: Analyzed, row: Row, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the dimension and log10 of the eigenvalues over the largest, not below twelve decades.

    Args:
        report: That the row is of.
        row: The row.
        most: Points; the first and the last stay.

    Returns:
        Two arrays, empty where there is no spectrum.
    """
    spectrum = report.spectra.get(row.key)
    if spectrum is None or not row.lambda_max > 0:
        return np.zeros(0), np.zeros(0)
    share, values = curve(spectrum, row.size)
    seen = np.flatnonzero(np.isfinite(values))
    seen = seen[np.unique(np.linspace(0, len(seen) - 1, most).round().astype(int))] if len(seen) else seen
    return share[seen], np.log10(np.maximum(values[seen], FLOOR))


def sparkline(report: Analyzed, row: Row) -> str:
    """As SVG; nothing where there is no spectrum."""
    share, values = thinned(report, row, 60)
    if not len(share):
        return ""
    width, height = _SIZE
    points = " ".join(
        f"{a:.1f},{b + 1:.1f}" for a, b in zip(width * share, height * values / np.log10(FLOOR), strict=True)
    )
    return (
        f'<svg width="{width}" height="{height + 2}" role="img" aria-label="spectrum" '
        'style="border-bottom:1px solid #8888"><polyline fill="none" stroke="currentColor" '
        f'stroke-width="1.5" points="{points}"/></svg>'
    )
