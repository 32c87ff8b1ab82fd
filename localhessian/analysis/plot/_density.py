"""How eigenvalues are distributed."""

from typing import Any

import numpy as np

from localhessian._status import quietly
from localhessian.analysis.plot._canvas import COLORS, canvas, plain
from localhessian.analysis.plot._drawn import legend, quantity, say_nothing, series_of
from localhessian.analysis.rows import FLOOR, Analyzed, Labeled
from localhessian.linalg import Density
from localhessian.network import Wrt

BINS = 48
"""Over the twelve decades that are drawn."""


@quietly()
def density(
    reports: Analyzed | Labeled[Analyzed] | Density,
    /,
    *,
    blocks: Any = None,
    wrt: Wrt = "params",
    part: str | None = None,
    columns: int | None = None,
    ax: Any = None,
) -> Any:
    """Draw how many eigenvalues lie where: of reports over the largest, per decade; of a `lh.Density` as it estimates.

    Of an uncoupled H_z all samples together. Zero eigenvalues are not drawn, so that the area is the share of the
    others. Of a density the band is its error, three standard errors and that of the quadrature.

    Args:
        reports: A report, several by the name of their network or by (network, stage); or what `lh.spectral_density`
            returns.
        blocks: A name or names; None for all of a report together.
        wrt: `"params"` for H_W, `"input"` for H_z.
        part: Of the local Hessian; None for the first that a report has.
        columns: 1 or 2, as wide as columns of a paper; None for a screen. An `ax` given keeps its size.
        ax: Of matplotlib; None makes one.

    Returns:
        The `ax`.

    Raises:
        TypeError: `reports`, `blocks` or `ax` is none.
        ValueError: There is no such side, width or block.
        ImportError: matplotlib is not installed.
    """
    if isinstance(reports, Density):
        with canvas(ax, columns) as axes:
            return _estimate(axes, reports)
    found = series_of(reports, wrt, blocks, part)
    edges = np.linspace(np.log10(FLOOR), 0, BINS + 1)
    with canvas(ax, columns) as axes:
        for one in found:
            parts = [_relative(one.spectra[row.key], row.size) for row in one.rows if row.key in one.spectra]
            if parts:
                logs, weights = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
                counts = np.histogram(logs, edges, weights=weights)[0] / len(parts) / np.diff(edges)
                look = {name: one.look[name] for name in ("color", "linestyle")}
                axes.stairs(counts, 10**edges, label=one.look["label"] or "_", linewidth=1.6, **look)
        if not axes.patches:
            say_nothing(axes)
        axes.set_xscale("log")
        axes.set_xlim(FLOOR, 1.5)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(rf"$\lambda\,/\,\lambda_{{max}}${quantity('', wrt)}")
        axes.set_ylabel("share of the dimension per decade")
        legend(axes)
    return axes


def _relative(spectrum: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
    """log10 of the non-zero eigenvalues over the largest, and what share of the dimension each is."""
    values = np.atleast_2d(spectrum.eigenvalues)
    counts = np.atleast_2d(spectrum.multiplicities) / (max(size, 1) * len(values))
    top = np.nanmax(np.where(np.isfinite(values), values, 0), axis=1, keepdims=True)
    relative = values / np.where(top > 0, top, np.nan)
    seen = np.isfinite(relative) & (relative >= FLOOR)
    return np.log10(relative[seen]), counts[seen]


def _estimate(ax: Any, found: Density) -> Any:
    edges, told = np.asarray(found.edges), found.density
    for i, (value, low, high) in enumerate(zip(*map(np.atleast_2d, (told.value, *told.interval())), strict=True)):
        line = np.atleast_2d(edges)[min(i, len(np.atleast_2d(edges)) - 1)]
        color = COLORS[i % len(COLORS)]
        ax.stairs(value, line, color=color, linewidth=1.6)
        ax.fill_between(line, np.append(low, low[-1]), np.append(high, high[-1]), step="post", color=color, alpha=0.2)
    if found.axis == "log":
        ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.set_xlabel(plain(r"eigenvalue"))
    ax.set_ylabel("density")
    return ax
