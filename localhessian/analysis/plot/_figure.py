"""The figure of one or several reports: condition numbers along depth, and spectra."""

from pathlib import Path
from typing import Any

from localhessian._optional import optional
from localhessian.analysis.plot._canvas import INCHES, check_columns, shown, style, write_figure
from localhessian.analysis.plot._depth import depth
from localhessian.analysis.plot._spectrum import spectrum
from localhessian.analysis.rows import SYMBOLS, Analyzed, Labeled, labeled

SCREEN = 15.0
PANEL = 3.6
"""Inches: how high a panel is where the figure is as wide as a screen."""


def figure(reports: Labeled[Analyzed], path: str | Path | None = None, *, columns: int | None = None) -> Any:
    """Draw one or several reports: a row for H_W, a row for H_z.

    Panels: `lh.plot.depth` of kappa_plus and of the quantile condition number lambda_max / lambda_0.05, on one axis,
    and `lh.plot.spectrum` of the block in the middle.

    Args:
        reports: By the name of a network, or by (network, stage).
        path: Written there if given; the ending chooses the format.
        columns: 1 or 2, as wide as columns of a paper; None for a screen.

    Returns:
        A matplotlib Figure.

    Raises:
        TypeError: A key of `reports` is neither a name nor a pair of names.
        ValueError: There is no such width.
        ImportError: matplotlib is not installed.
    """
    check_columns(columns)
    told = labeled(reports)
    sides = [w for w in SYMBOLS if any(row.symbol == SYMBOLS[w] for report in told.values() for row in report.rows)]
    sides = sides or list(SYMBOLS)
    width = SCREEN if columns is None else INCHES[columns]
    panels = 1 if columns == 1 else 3
    lines = len(sides) * 3 // panels
    with style(columns):
        size = (width, lines * (PANEL if panels == 3 else 3) * max(width / SCREEN * 3 / panels, 0.5) + 0.4)
        drawn = optional("matplotlib.figure").Figure(figsize=size, layout="constrained")
        axes = drawn.subplots(lines, panels, squeeze=False).reshape(len(sides), 3)
        for wrt, (plus, robust, of_spectrum) in zip(sides, axes, strict=True):
            robust.sharey(plus)
            depth(told, metric="kappa_plus", wrt=wrt, columns=columns, ax=plus)
            depth(told, metric="kappa_q05", wrt=wrt, columns=columns, ax=robust)
            spectrum(told, wrt=wrt, columns=columns, ax=of_spectrum)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        for ax in axes.flat:
            told_above = ax.get_legend() is not None and ax.get_legend_handles_labels()[1] == labels
            if told_above:
                ax.get_legend().remove()
        if labels:
            drawn.legend(handles, labels, loc="outside upper center", ncols=min(4 if panels == 3 else 1, len(labels)))
        if path is not None:
            write_figure(drawn, path)
    return shown(drawn)
