"""What is common to the figures of reports: which rows, in which color, at which place, by which name."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from localhessian._arguments import expect_choice, short
from localhessian.analysis.plot._canvas import COLORS, plain
from localhessian.analysis.rows import (
    COLUMNS,
    INTERVALS,
    SYMBOLS,
    Analyzed,
    Label,
    Labeled,
    Row,
    RowSpectrum,
    distinct,
    fitted,
    labeled,
    several,
)
from localhessian.network import Wrt

RATIOS = ("kappa", "lambda", "trace", "effective")
"""Figures whose ratios are what matters: their axes are logarithmic."""
_WORDS = ("block", "wrt", "part", "coupled", "method", "converged", "status", "note")
SHARE = "share"
"""rank / size, as a figure."""
METRICS = (*(column for column in COLUMNS if column not in _WORDS), SHARE)
_NAMES = {
    "kappa_plus": r"$\kappa^+$",
    "kappa_q05": r"$\lambda_{max}/\lambda_{5\%}$",
    "kappa_q95": r"$\lambda_{max}/\lambda_{95\%}$",
    "lambda_max": r"$\lambda_{max}$",
    "lambda_min_nonzero": r"$\lambda_{min}^+$",
    SHARE: "rank / dimension",
}
_SIDES = {"params": "$H_W$", "input": "$H_z$"}
OPEN = 10
"""Matplotlib's caret that sits on a point: of its interval no upper end is known."""
TICK = 16
"""Characters of a name at a tick."""


@dataclasses.dataclass(frozen=True)
class Series:
    """The rows of one report that are drawn, in the order of the blocks, and how."""

    label: Label
    rows: tuple[Row, ...]
    spectra: Mapping[Any, RowSpectrum]
    look: dict[str, Any]

    def values(self, metric: str) -> np.ndarray:
        """A figure of every row."""
        if metric == SHARE:
            return np.array([row.rank / row.size if row.size else np.nan for row in self.rows])
        return np.array([float(getattr(row, metric)) for row in self.rows])

    def interval(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """The ends of its interval; NaN where none is known."""
        if metric not in INTERVALS:
            return (np.full(len(self.rows), np.nan),) * 2
        low, high = (self.values(name) for name in INTERVALS[metric])
        return low, high

    @property
    def is_sure(self) -> np.ndarray:
        """Whether each row has the status CONVERGED."""
        return np.array([row.status == "CONVERGED" for row in self.rows], bool)


def series_of(reports: Any, wrt: Wrt, blocks: Any, part: str | None = None) -> list[Series]:
    """What is asked for, by report.

    Args:
        reports: A report, or several by the name of their network or by (network, stage).
        wrt: The side.
        blocks: A name or names; None for all.
        part: Of the local Hessian; None for the first that a report has.

    Raises:
        TypeError: What is no report, or no name.
        ValueError: An unknown side, or a block that no report has.
    """
    expect_choice("wrt", wrt, tuple(SYMBOLS))
    given = labeled(_several(reports))
    names = None if blocks is None else several("blocks", blocks)
    known = list(dict.fromkeys(row.block for report in given.values() for row in report.rows))
    for name in names or ():
        if name not in known:
            raise ValueError(f"`blocks` names `{name}`, which no report has: they have {', '.join(known) or 'none'}.")
    looks, found = _looks(list(given)), []
    for label, report in given.items():
        of_side = [row for row in report.rows if row.symbol == SYMBOLS[wrt] and (names is None or row.block in names)]
        one = part or next((row.part for row in of_side), "")
        rows = tuple(row for row in of_side if row.part == one and row.has_figures)
        found.append(Series(label, rows, report.spectra, looks[label]))
    return found


def check_metric(metric: Any) -> None:
    """Refuse what is no figure of a row.

    Raises:
        ValueError: it is none.
    """
    expect_choice("metric", metric, METRICS)


def quantity(metric: str, wrt: Wrt | None = None) -> str:
    """A figure as an axis names it."""
    of = f" of {_SIDES[wrt]}" if wrt else ""
    return f"{_NAMES.get(metric, metric.replace('_', ' '))}{of}"


def _several(reports: Any) -> Labeled[Analyzed]:
    if isinstance(reports, Mapping):
        wrong = [report for report in reports.values() if not hasattr(report, "spectra")]
    else:
        wrong, reports = ([] if hasattr(reports, "spectra") else [reports]), {"": reports}
    if wrong:
        raise TypeError(f"`reports` must be a report, or reports by the name of their network, got {short(wrong[0])}.")
    return reports


def _looks(labels: Sequence[Label]) -> dict[Label, dict[str, Any]]:
    """Color by network, line and marker by stage: the last one solid."""
    networks = list(dict.fromkeys(label.network for label in labels))
    looks = {}
    for label in labels:
        is_last = label == [other for other in labels if other.network == label.network][-1]
        looks[label] = {
            "color": COLORS[networks.index(label.network) % len(COLORS)],
            "linestyle": "-" if is_last else (0, (4, 2)),
            "marker": "o" if is_last else "s",
            "label": plain(str(label)),
        }
    return looks


def points(ax: Any, x: np.ndarray, series: Series, metric: str, *, line: bool = True) -> None:
    """A figure with its interval, a caret where that has no end; hollow where doubtful, arrows where nothing ends."""
    values, (low, high), sure = series.values(metric), series.interval(metric), series.is_sure
    finite = np.isfinite(values)
    look = dict(series.look)
    color, marker, label = look["color"], look.pop("marker"), look.pop("label")
    style = look.pop("linestyle") if line else "none"
    ax.plot(x, np.where(finite, values, np.nan), color=color, linestyle=style, label="_")
    error = np.nan_to_num(np.array([values - low, high - values]), nan=0, posinf=0, neginf=0)
    ax.errorbar(x, np.where(finite, values, np.nan), yerr=np.maximum(error, 0), fmt="none", ecolor=color, capsize=2)
    for some, face in ((finite & sure, color), (finite & ~sure, "white")):
        ax.plot(x[some], values[some], marker, color=color, markerfacecolor=face, label="_")
    opened = finite & np.isposinf(high)
    ax.plot(x[opened], values[opened], marker=OPEN, markersize=9, color=color, linestyle="none", label="_")
    bounded = np.isnan(values) & np.isfinite(low)
    ax.scatter(x[bounded], low[bounded], marker=r"$\uparrow$", s=70, color=color)
    infinite = np.isposinf(values)
    at_edge = {"transform": ax.get_xaxis_transform(), "clip_on": False}
    ax.scatter(x[infinite], np.full(infinite.sum(), 0.98), marker=r"$\uparrow$", s=70, color=color, **at_edge)
    ax.plot([], [], marker, color=color, linestyle=style, label=label or "_")


def scale(ax: Any, metric: str, series: Iterable[Series]) -> None:
    """Logarithmic where ratios matter and there are numbers; shares from 0 to 1; in words where there is nothing."""
    values = [np.concatenate([one.values(metric), one.interval(metric)[0]]) for one in series]
    known = np.concatenate([*values, np.zeros(0)])
    known = known[np.isfinite(known)]
    if not len(known):
        say_nothing(ax)
    elif metric.startswith(RATIOS) and (known > 0).any():
        ax.set_yscale("log")
        if known[known > 0].max() / known[known > 0].min() < 1.5:  # one decade at least, or ticks have no room
            middle = float(np.sqrt(known[known > 0].max() * known[known > 0].min()))
            ax.set_ylim(middle / 3, middle * 3)
    elif metric == SHARE or "share" in metric or metric.startswith(("gradient", "top_on")):
        ax.set_ylim(-0.02, 1.02)


def say_nothing(ax: Any) -> None:
    """In words."""
    ax.text(0.5, 0.5, "nothing to show", transform=ax.transAxes, ha="center", va="center", color="gray")
    ax.set_yticks([])


def name_ticks(ax: Any, names: Sequence[str]) -> None:
    """Names of blocks along the x axis, as many as fit."""
    size = _points_of(ax)
    width = ax.get_window_extent().width / ax.figure.dpi * 72
    told = [plain(fitted(name, TICK)) for name in distinct(names, TICK)]
    needed = sum(0.55 * size * (len(name) + 1.2) for name in told)
    is_flat = needed <= width
    every = 1 if is_flat else max(1, int(np.ceil(1.7 * size * len(told) / max(width, 1))))
    at = range(0, len(told), every)
    turned = {} if is_flat else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(list(at), [told[i] for i in at], **turned)


def _points_of(ax: Any) -> float:
    return float(ax.xaxis.label.get_size())


def legend(ax: Any) -> None:
    """Where lines have names."""
    handles, labels = ax.get_legend_handles_labels()
    if labels:
        ax.legend(handles, labels)
