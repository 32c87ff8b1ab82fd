"""A figure of blocks over the steps of a training."""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from localhessian._arguments import short
from localhessian._optional import optional
from localhessian._status import Status, quietly
from localhessian.analysis.plot._canvas import canvas, plain
from localhessian.analysis.plot._drawn import Series, check_metric, points, quantity, scale, series_of
from localhessian.analysis.rows import Analyzed, Key, Label, Row, RowSpectrum, distinct
from localhessian.network import Wrt

NAMED = 6
"""Blocks in the legend; of more the first, the last, and some between."""


@quietly()
def evolution(
    history: Mapping[float, Analyzed] | Any,
    /,
    *,
    metric: str = "kappa_plus",
    wrt: Wrt = "params",
    blocks: Any = None,
    columns: int | None = None,
    ax: Any = None,
) -> Any:
    """Draw a figure over steps, a line for each block, from dark (the first) to light (the last).

    Bars, carets, hollow points and arrows are as in `lh.plot.depth`.

    Args:
        history: Reports by the step that they were made at; or an xarray Dataset with the dimensions step, block and
            wrt, as the `history` of an `lh.Probe` is one.
        metric: A numeric column of `Report.to_dataframe()`, or `"share"`, rank / size.
        wrt: `"params"` for H_W, `"input"` for H_z.
        blocks: A name or names; None for all.
        columns: 1 or 2, as wide as columns of a paper; None for a screen. An `ax` given keeps its size.
        ax: Of matplotlib; None makes one.

    Returns:
        The `ax`.

    Raises:
        TypeError: `history`, `blocks` or `ax` is none.
        ValueError: There is no such metric, side, width or block.
        ImportError: matplotlib is not installed.
    """
    check_metric(metric)
    reports = _reports(history)
    steps = np.array(sorted(reports), float)
    series = series_of({str(step): reports[step] for step in sorted(reports)}, wrt, blocks)
    names = list(dict.fromkeys(row.block for one in series for row in one.rows))
    map_of_colors = optional("matplotlib").colormaps["viridis"]
    with canvas(ax, columns) as axes:
        told = {names[i] for i in np.unique(np.linspace(0, len(names) - 1, NAMED).round().astype(int))} if names else {}
        lines = []
        for i, (name, short_name) in enumerate(zip(names, distinct(names, 24), strict=True)):
            color = map_of_colors(0.92 * i / max(len(names) - 1, 1))
            of_block = [next((row for row in one.rows if row.block == name), None) for one in series]
            at = [k for k, row in enumerate(of_block) if row is not None]
            look = {"color": color, "linestyle": "-", "marker": "o", "label": plain(short_name) if name in told else ""}
            rows = tuple(row for row in of_block if row is not None)
            lines.append(Series(Label(name), rows, {}, look))
            points(axes, steps[at], lines[-1], metric)
        scale(axes, metric, lines)
        axes.set_xlabel("step")
        axes.set_ylabel(quantity(metric, wrt))
        if names:
            axes.legend(title="block", loc="upper left", bbox_to_anchor=(1.01, 1))
    return axes


def _reports(history: Any) -> dict[float, Any]:
    if all(hasattr(history, part) for part in ("data_vars", "sizes", "sel")):
        return _of_dataset(history)
    if not isinstance(history, Mapping) or not all(isinstance(step, numbers.Real) for step in history):
        raise TypeError(
            f"`history` must hold reports by their step, or be an xarray.Dataset over step, got {short(history)}."
        )
    return dict(history)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What is read of a report, from one step of a dataset."""

    rows: tuple[Row, ...]
    spectra: Mapping[Key, RowSpectrum] = dataclasses.field(default_factory=dict)
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _of_dataset(history: Any) -> dict[float, Any]:
    lacking = [dim for dim in ("step", "block", "wrt") if dim not in history.sizes]
    if lacking:
        raise TypeError(f"`history` must have the dimensions step, block and wrt; it lacks {', '.join(lacking)}.")
    found = {}
    numeric = [
        name
        for name, values in history.data_vars.items()
        if name in Row.__dataclass_fields__ and name != "status" and values.dtype.kind in "fiub"
    ]
    for step in history["step"].values:
        at = history.sel(step=step)
        rows = []
        for block in at["block"].values:
            for wrt in at["wrt"].values:
                one = at.sel(block=block, wrt=wrt).squeeze()
                code = int(one["status"]) if "status" in one else 0
                if code < 0:  # there is no such Hessian
                    continue
                figures = {name: float(one[name]) for name in numeric}
                size = int(one["size"]) if "size" in one.coords else 0
                rows.append(_row(str(block), str(wrt), size, Status(code), figures))
        found[float(step)] = _Rows(tuple(rows))
    return found


def _row(block: str, wrt: Any, size: int, status: Status, figures: dict[str, float]) -> Row:
    known = ("rank", "lambda_min_nonzero", "kappa_plus", "kappa_lower", "kappa_upper", "kappa_q05", "kappa_q95")
    # A dataset may hold a few figures only; that there is a matrix is what the row must say.
    plain_figures: dict[str, Any] = {**dict.fromkeys(known, np.nan), "lambda_max": 0.0, **figures}
    return Row(
        block=block,
        wrt=wrt,
        part="gauss_newton",
        size=size,
        samples=0,
        coupled=False,
        method="",
        matvecs=0,
        converged=status is Status.CONVERGED,
        status=status.name,
        **plain_figures,
    )
