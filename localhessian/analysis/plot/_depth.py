"""A figure of every block along the depth of a network."""

from typing import Any

import numpy as np

from localhessian._status import quietly
from localhessian.analysis.plot._canvas import canvas
from localhessian.analysis.plot._drawn import check_metric, legend, name_ticks, points, quantity, scale, series_of
from localhessian.analysis.rows import Analyzed, Labeled
from localhessian.network import Wrt


@quietly()
def depth(
    reports: Analyzed | Labeled[Analyzed],
    /,
    *,
    metric: str = "kappa_plus",
    wrt: Wrt = "params",
    blocks: Any = None,
    part: str | None = None,
    columns: int | None = None,
    ax: Any = None,
) -> Any:
    """Draw a figure of the rows along depth, a line for each report.

    Bars are intervals, with a caret where no upper end is known; a hollow point has a status other than CONVERGED; an
    arrow starts at a lower bound where no more is known, and one at the upper edge is an infinite value. Networks whose
    blocks have other names are drawn over relative depth, 0 the first block and 1 the last.

    Args:
        reports: A report, or several by the name of their network or by (network, stage): networks differ in color,
            stages before the last are dashed.
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
        names = max(([row.block for row in one.rows] for one in found), key=len, default=[])
        same = all({row.block for row in one.rows} <= set(names) for one in found)
        for one in found:
            if same:
                x = np.array([names.index(row.block) for row in one.rows], float)
            else:
                x = np.linspace(0, 1, len(one.rows)) if len(one.rows) != 1 else np.full(1, 0.5)
            points(axes, x, one, metric)
        scale(axes, metric, found)
        if same:
            name_ticks(axes, names)
            axes.set_xlim(-0.5, max(len(names), 1) - 0.5)
        axes.set_xlabel("block" if same else "relative depth, first block to last")
        axes.set_ylabel(quantity(metric, wrt))
        axes.grid(axis="x", visible=False)
        legend(axes)
    return axes
