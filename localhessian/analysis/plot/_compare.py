"""Networks beside each other: a figure of all of their blocks."""

from typing import Any

import numpy as np

from localhessian._status import quietly
from localhessian.analysis.plot._canvas import canvas, plain
from localhessian.analysis.plot._drawn import check_metric, points, quantity, scale, series_of
from localhessian.analysis.rows import Analyzed, Labeled, fitted
from localhessian.network import Wrt

NAME = 20
"""Characters of the name of a network."""
SPREAD = 0.28
"""Half the width in which the blocks of one report stand, in the order of the network."""


@quietly()
def compare(
    reports: Analyzed | Labeled[Analyzed],
    /,
    *,
    metric: str = "kappa_q05",
    wrt: Wrt = "params",
    blocks: Any = None,
    part: str | None = None,
    columns: int | None = None,
    ax: Any = None,
) -> Any:
    """Draw a figure of every block of several networks, a column for each, on one axis; a bar is the median.

    Within a column blocks stand in the order of the network. Bars, carets, hollow points and arrows are as in
    `lh.plot.depth`.

    Args:
        reports: Several by the name of their network or by (network, stage), or one.
        metric: A numeric column of `Report.to_dataframe()`, or `"share"`, rank / size.
        wrt: `"params"` for H_W, `"input"` for H_z.
        blocks: A name or names; None for all.
        part: Of the local Hessian; None for the first that a report has.
        columns: 1 or 2, as wide as columns of a paper; None for a screen. An `ax` given keeps its size.
        ax: Of matplotlib; None makes one.

    Returns:
        The `ax`.

    Raises:
        TypeError: `reports`, `blocks` or `ax` is none.
        ValueError: There is no such metric, side, width or block.
        ImportError: matplotlib is not installed.
    """
    check_metric(metric)
    found = series_of(reports, wrt, blocks, part)
    with canvas(ax, columns) as axes:
        for i, one in enumerate(found):
            count = len(one.rows)
            x = i + (np.linspace(-SPREAD, SPREAD, count) if count > 1 else np.zeros(count))
            points(axes, x, one, metric, line=False)
            values = one.values(metric)
            if np.isfinite(values).any():
                median = float(np.nanmedian(values))
                axes.plot([i - 0.4, i + 0.4], [median, median], color=one.look["color"], linewidth=2.5, alpha=0.6)
        scale(axes, metric, found)
        names = ["\n".join(plain(fitted(word, NAME)) for word in one.label if word) for one in found]
        axes.set_xticks(range(len(found)), names)
        axes.set_xlim(-0.6, max(len(found), 1) - 0.4)
        axes.set_ylabel(quantity(metric, wrt))
        axes.grid(axis="x", visible=False)
    return axes
