"""Comparisons as text in columns and as curves: means over seeds only."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from localhessian._grid import grid
from localhessian._optional import optional
from localhessian.analysis import COLORS, MINIMUM, Mean, interval, number, plain, shown, style, write_figure
from localhessian.lab.comparison._outcome import Outcome, final_runs
from localhessian.lab.comparison._run import Run

COLUMNS = (
    "network",
    "algorithm",
    "learning rate",
    "seeds",
    "accuracy %",
    "gain, points",
    "test loss",
    "ms / step",
    "cost",
)
LEGEND = f"""\
Means over the seeds [95 % intervals by Student's t]. gain: accuracy minus that of the first algorithm, seed by seed.
cost: time of a step over that of the first algorithm, compilation and tests not counted. Each algorithm's learning rate
was tuned on a validation part, with as many trials for each.
*: at the edge of the grid, a better one may lie outside.   !: of this many runs the loss was not finite.
?: less than {MINIMUM} seeds, so no interval is claimed and nothing follows from it."""


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in columns, a section for each network."""
    columns = {column: "left" if column in COLUMNS[:2] else "right" for column in COLUMNS}
    sections = [
        ("", list(map(_cells, group))) for _, group in itertools.groupby(outcomes, lambda outcome: outcome.network)
    ]
    return "\n".join([*grid(columns, sections), LEGEND])


def _cells(outcome: Outcome) -> list[str]:
    diverged = f" {outcome.diverged}!" if outcome.diverged else ""
    return [
        outcome.network,
        outcome.algorithm,
        number(outcome.tuned.learning_rate) + ("*" if outcome.tuned.at_edge else ""),
        str(outcome.accuracy.runs) + ("" if outcome.accuracy.runs >= MINIMUM else "?"),
        _spread(outcome.accuracy, 100, ".2f"),
        "-" if outcome.gain is None else _spread(outcome.gain, 100, "+.2f"),
        _spread(outcome.loss, 1, ".4f") + diverged,
        _spread(outcome.step_seconds, 1000, ".3g"),
        f"{outcome.cost:.2f}",
    ]


def _spread(value: Mean, scale: float, form: str) -> str:
    """`91.20 [90.80, 91.60]`; below five seeds `91.20?`."""
    mean = f"{scale * value.mean:{form}}"
    if value.runs < MINIMUM:
        return f"{mean}?"
    return mean if np.isnan(value.low) else f"{mean} [{scale * value.low:{form}}, {scale * value.high:{form}}]"


def curves(runs: Sequence[Run], outcomes: Sequence[Outcome], path: str | Path | None = None) -> Any:
    """A row for each network: accuracy by steps and by seconds, and the training loss by steps.

    Args:
        runs: All of them; only final ones are drawn.
        outcomes: What to draw.
        path: Written there if given; the ending chooses the format.

    Returns:
        A matplotlib Figure; a band is the 95 % interval at that step, and there is none below five seeds.

    Raises:
        ImportError: matplotlib is not installed.
    """
    networks = list(dict.fromkeys(outcome.network for outcome in outcomes))
    names = list(dict.fromkeys(outcome.algorithm for outcome in outcomes))
    with style():
        size = (16, 4.4 * max(1, len(networks)) + 0.6)
        drawn = optional("matplotlib.figure").Figure(figsize=size, layout="constrained")
        axes = drawn.subplots(max(1, len(networks)), 3, squeeze=False)
        for line, network in zip(axes, networks, strict=False):
            for outcome in (outcome for outcome in outcomes if outcome.network == network):
                final = final_runs(runs, network, outcome.algorithm)
                look = {
                    "color": COLORS[names.index(outcome.algorithm) % len(COLORS)],
                    "label": plain(outcome.algorithm),
                }
                seconds = np.mean([_filled(run.curve.seconds) for run in final], axis=0)
                _band(line[0], final, lambda run: 100 * _filled(run.curve.accuracy), final[0].curve.at, look)
                _band(line[1], final, lambda run: 100 * _filled(run.curve.accuracy), seconds, look)
                _band(line[2], final, Run.train_loss, final[0].curve.at, look)
            units = ("steps", "seconds", "steps"), ("test accuracy, %", "test accuracy, %", "training loss")
            for ax, at, quantity in zip(line, *units, strict=True):
                ax.set_xlabel(at)
                ax.set_ylabel(quantity)
                ax.set_title(plain(network))
            line[2].set_yscale("log")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        if labels:
            drawn.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))
        if path is not None:
            write_figure(drawn, path)
    return shown(drawn)


def _band(axes: Any, runs: Sequence[Run], values: Callable[[Run], np.ndarray], at: np.ndarray, look: dict) -> None:
    """The mean over the runs with its interval; dashed and without a band where no interval is claimed."""
    spread = [interval(column) for column in np.stack([values(run) for run in runs]).T]
    axes.plot(at, [s.mean for s in spread], linewidth=2, linestyle="-" if len(runs) >= MINIMUM else "--", **look)
    axes.fill_between(
        at, [s.low for s in spread], [s.high for s in spread], alpha=0.2, linewidth=0, color=look["color"]
    )


def _filled(values: np.ndarray) -> np.ndarray:
    """A run that was stopped keeps its last value."""
    last = np.flatnonzero(np.isfinite(values))[-1]
    return np.where(np.arange(len(values)) > last, values[last], values)
