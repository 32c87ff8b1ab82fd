"""Reports as a figure: condition numbers along depth, and spectra."""

import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from localhessian._files import whole
from localhessian._optional import optional
from localhessian.analysis._label import Label, Labeled, labeled
from localhessian.analysis._row import Analyzed, Row
from localhessian.analysis._spectrum_curve import FLOOR, curve

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito: told apart by color-blind readers too."""
_INTERVALS = {"kappa_plus": ("kappa_lower", "kappa_upper"), "kappa_q05": ("kappa_q05_lower", "kappa_q05_upper")}
_SYMBOLS = {"params": "$H_W$", "input": "$H_z$"}
_STYLE = {"font.size": 13, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "path"}


def figure(reports: Labeled[Analyzed], path: str | Path | None = None) -> Any:
    """Draw one or several reports: a row for H_W, a row for H_z.

    Columns: kappa_plus of every block with its interval (an arrow where only a lower bound is known), the quantile
    condition number lambda_max / lambda_0.05, and the whole spectrum of the block in the middle.

    Args:
        reports: By the name of a network, or by (network, stage).
        path: Written there if given; the ending chooses the format.

    Returns:
        A matplotlib Figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figures, reports = optional("matplotlib.figure"), labeled(reports)
    with optional("matplotlib").rc_context(_STYLE):
        drawn = figures.Figure(figsize=(16, 8.8), layout="constrained")
        axes = drawn.subplots(2, 3)
        for (wrt, symbol), line in zip(_SYMBOLS.items(), axes, strict=True):
            _along_depth(line[0], reports, wrt, "kappa_plus", rf"$\kappa^+$ of {symbol}")
            _along_depth(line[1], reports, wrt, "kappa_q05", rf"$\lambda_{{max}}/\lambda_{{5\%}}$ of {symbol}")
            _spectra(line[2], reports, wrt, symbol)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        if any(labels):
            drawn.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)), frameon=False)
        if path is not None:
            write_figure(drawn, path)
    return shown(drawn)


def png(drawn: Any, dpi: int = 100) -> bytes:
    """The picture, for a notebook."""
    out = io.BytesIO()
    drawn.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def shown(drawn: Any, picture: Any = None) -> Any:
    """The figure, or the `ax` of one, that a notebook shows as a picture at the end of a cell, without any magic."""
    drawn._repr_png_ = functools.partial(png, drawn if picture is None else picture)
    return drawn


def write_figure(drawn: Any, path: str | Path) -> None:
    """Write it whole or not at all; the ending chooses the format, without one it is png."""
    path = Path(path)
    path = path if path.suffix else path.with_name(f"{path.name}.png")
    with whole(path) as part:
        drawn.savefig(part, dpi=150, format=path.suffix.removeprefix("."))


def _looks(reports: Mapping[Label, Analyzed]) -> dict[Label, dict[str, Any]]:
    """Color by network, line and marker by stage."""
    networks = list(dict.fromkeys(label.network for label in reports))
    looks = {}
    for label in reports:
        last = [other for other in reports if other.network == label.network][-1]
        color, solid = COLORS[networks.index(label.network) % len(COLORS)], label == last
        looks[label] = {
            "color": color,
            "linestyle": "-" if solid else (0, (4, 2)),
            "marker": "o" if solid else "s",
            "markerfacecolor": color if solid else "white",
            "label": _plain(str(label)),
        }
    return looks


def _rows(report: Analyzed, wrt: str) -> list[Row]:
    """Those with something to draw."""
    return [row for row in report.rows if row.wrt == wrt and row.lambda_max > 0]


def _plain(text: str) -> str:
    """A name as it is: to matplotlib a dollar begins mathematics."""
    return text.replace("$", r"\$")


def _along_depth(axes: Any, reports: Mapping[Label, Analyzed], wrt: str, column: str, title: str) -> None:
    names: list[str] = []
    has_numbers = False
    for label, look in _looks(reports).items():
        rows = _rows(reports[label], wrt)
        names += [row.block for row in rows if row.block not in names]
        at = np.array([names.index(row.block) for row in rows])
        value = np.array([getattr(row, column) for row in rows])
        has_numbers |= bool(np.any(value > 0))
        low, high = (np.array([getattr(row, name) for row in rows]) for name in _INTERVALS[column])
        error = np.nan_to_num(np.array([value - low, high - value]), nan=0, posinf=0)
        axes.errorbar(at, value, yerr=np.maximum(error, 0), **look, markersize=8, linewidth=2, capsize=4)
        only_bound = np.isnan(value) & np.isfinite(low)
        has_numbers |= bool(np.any(only_bound))
        axes.scatter(at[only_bound], low[only_bound], marker="$\\uparrow$", s=160, color=look["color"])
    if has_numbers:  # a logarithmic axis cannot do without numbers
        axes.set_yscale("log")
    axes.set_xticks(range(len(names)), [_plain(name) for name in names], rotation=30 if len(names) > 8 else 0)
    axes.set_title(title)
    axes.set_xlabel("block")
    axes.grid(axis="y", alpha=0.25)


def _spectra(axes: Any, reports: Mapping[Label, Analyzed], wrt: str, symbol: str) -> None:
    """Eigenvalues over the largest, from the largest down, by the share of the dimension; samples: their median."""
    block = ""
    for label, look in _looks(reports).items():
        rows = [row for row in _rows(reports[label], wrt) if row.key in reports[label].spectra]
        if not rows:
            continue
        row = next((row for row in rows if row.block == block), rows[len(rows) // 2])
        block = row.block
        share, values = curve(reports[label].spectra[row.key], row.size)
        style = {key: look[key] for key in ("color", "linestyle", "label")}
        axes.plot(share, values, linewidth=2, **style)
    axes.set_yscale("log")
    axes.set_ylim(FLOOR, 2)
    axes.set_title(f"spectrum of {symbol}, block {_plain(block)}" if block else f"spectrum of {symbol}")
    axes.set_xlabel("share of the dimension")
    axes.set_ylabel(r"$\lambda\,/\,\lambda_{max}$")
    axes.grid(alpha=0.25)
