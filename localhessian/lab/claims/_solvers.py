"""Claim: back-matching solvers train where SGD does not; at equal steps, and at equal time."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from localhessian._grid import grid
from localhessian._optional import optional
from localhessian.analysis import COLORS, style
from localhessian.lab.claims._claim import Claim, Frame, Judgement, Point, Row, Setting, Size, Verdict, Work
from localhessian.lab.claims._studied import consecutive, studied
from localhessian.lab.comparison import Plan, network

NETWORKS: dict[Size, tuple[tuple[int, ...], int]] = {"small": ((6,), 16), "full": ((2, 3, 4, 5, 6, 8), 32)}
"""Hidden layers of sigmoid networks, and their width."""
PLANS: dict[Size, Plan] = {
    "small": Plan(steps=60, batch=32, trials=3, tuning_seeds=1, evaluations=1),
    "full": Plan(steps=400, trials=5, tuning_seeds=2, evaluations=5),
}
IMAGES = (5000, 2000)
"""To train and to test on, at most."""
LONGEST = 8.0
"""How many times as many steps an algorithm gets at most to take the time of back-matching."""
RIVALS = {"momentum": "SGD, momentum 0.9", "adam": "Adam"}
OURS = "back-matching"
FAILS_BELOW = 1.5
"""SGD counts as not training where its accuracy is less than so many times chance."""


def points(setting: Setting) -> list[Point]:
    """Depths; each is run with all seeds, for its intervals."""
    return [{"depth": depth, "seeds": consecutive(setting.seeds)} for depth in NETWORKS[setting.size][0]]


def measure(point: Point, work: Work) -> list[Row]:
    """All on the same number of steps; then the others on as many as take the same time."""
    size, images = work.setting.size, work.setting.images
    part = images.take(*(min(count, len(x)) for count, x in zip(IMAGES, (images.train_x, images.test_x), strict=True)))
    plan, made = PLANS[size], network(f"sigmoid-{point['depth']}", part, width=NETWORKS[size][1])
    found = studied(made, (*RIVALS, OURS), part, plan, work, "steps", share=(0.0, 0.5))
    seconds = {outcome.algorithm: outcome.step_seconds.mean for outcome in found}
    rows = [{"budget": "steps", "steps": plan.steps, **outcome.record()} for outcome in found]
    for i, name in enumerate(RIVALS):
        times = min(max(seconds[OURS] / seconds[name], 1.0), LONGEST)
        share = (0.5 + 0.25 * i, 0.75 + 0.25 * i)
        longer = round(plan.steps * times)
        (again,) = studied(made, (name,), part, plan, work, f"time-{name}", share=share, steps=longer)
        rows.append({"budget": "time", "steps": longer, **again.record()})
    chance = float(np.bincount(part.test_y).max() / len(part.test_y))
    columns = ("budget", "algorithm", "steps", "learning_rate", "at_edge", "accuracy", "accuracy_low", "accuracy_high")
    return [{**{name: row[name] for name in columns}, "chance": chance} for row in rows]


def table(data: Frame) -> str:
    """A line for each depth."""
    names = {("steps", OURS): "back-matching"}
    for budget in ("steps", "time"):
        names |= {(budget, name): f"{name}, equal {budget}" for name in RIVALS}
    columns = {"hidden layers": "right"} | dict.fromkeys(names.values(), "right")
    rows = []
    for depth in data.depth.unique():
        at = data[data.depth == depth]
        rows.append([str(depth), *(_told(at[(at.budget == b) & (at.algorithm == name)]) for b, name in names)])
    return "\n".join(grid(columns, [("test accuracy, %", rows)]))


def _told(one: Frame) -> str:
    if not len(one):
        return "not run"
    mean, low, high = (100 * one[name].iloc[0] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def figure(data: Frame) -> Any:
    """Accuracy by depth, at equal steps and at equal time; bars are 95 % intervals, chance is dotted."""
    with style():
        drawn = optional("matplotlib.figure").Figure(figsize=(7.4, 3.2), layout="constrained")
        axes = drawn.subplots(1, 2, sharey=True)
        for ax, budget in zip(axes, ("steps", "time"), strict=True):
            for color, name in zip(COLORS, (*RIVALS, OURS), strict=False):
                part = data[(data.algorithm == name) & (data.budget == ("steps" if name == OURS else budget))]
                mean = 100 * part.accuracy
                bars = [mean - 100 * part.accuracy_low, 100 * part.accuracy_high - mean]
                ax.errorbar(part.depth, mean, bars, color=color, marker="o", capsize=3, label=RIVALS.get(name, name))
            ax.axhline(100 * data.chance.iloc[0], color="gray", linestyle=":", linewidth=1)
            ax.set(xlabel="hidden layers", title=f"at equal {budget}")
        axes[0].set_ylabel("test accuracy, %")
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def verdict(data: Frame) -> Judgement:
    """By the intervals at the depths where SGD does not train."""
    sgd = _of(data, "steps", "momentum")
    failing = sgd.index[sgd.accuracy < FAILS_BELOW * sgd.chance]
    if not len(failing):
        return Judgement(Verdict.FAILS, "SGD trains at every depth measured, so there is nothing to save")
    ours = _of(data, "steps", OURS)
    wins = {
        (budget, name): _wins(ours, _of(data, budget, name), failing) for budget in ("steps", "time") for name in RIVALS
    }
    told = [
        f"{RIVALS[name]} at equal {budget} at {len(won)} of {len(of)}" for (budget, name), (won, of) in wins.items()
    ]
    where = ", ".join(map(str, failing))
    reason = f"where SGD does not train ({where} hidden layers), back-matching is ahead of {'; of '.join(told)} depths"
    if all(len(won) == len(of) for won, of in wins.values()):
        return Judgement(Verdict.HOLDS, reason)
    won, of = wins["steps", "momentum"]
    return Judgement(Verdict.WITH_LIMITS if len(won) == len(of) else Verdict.FAILS, reason)


def _of(data: Frame, budget: str, name: str) -> Frame:
    return data[(data.budget == budget) & (data.algorithm == name)].set_index("depth")


def _wins(ours: Frame, theirs: Frame, depths: Sequence[int]) -> tuple[list[int], list[int]]:
    """The depths at which our interval lies above theirs, of those that were run."""
    there = [depth for depth in depths if depth in theirs.index]
    return [depth for depth in there if ours.accuracy_low[depth] > theirs.accuracy_high[depth]], there


CLAIM = Claim(
    name="solvers",
    title="Back-matching solvers train where SGD does not",
    says=(
        "SGD is back-matching with one gradient step for each of its problems, and its trouble with a network is that "
        "of these problems (section 3). Then solving them better must train what SGD cannot."
    ),
    rule=(
        "sigmoid networks by depth, every learning rate tuned on the same budget, five seeds. Where SGD with momentum "
        "stays below 1.5 times chance, the 95 % interval of back-matching (damped Gauss-Newton steps for weights and "
        "inputs) is compared with those of SGD and Adam, at equal steps and at equal time. Holds if it lies above all "
        "of them at each such depth; with limits if above that of SGD at equal steps."
    ),
    cost={"small": "30 s", "full": "3 h on 2 cores"},
    seeds={"small": 5, "full": 5},
    data={"small": "digits", "full": "cifar10"},
    points=points,
    measure=measure,
    table=table,
    figure=figure,
    verdict=verdict,
)
