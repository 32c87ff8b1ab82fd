"""Claim: batch normalization improves the condition of H_W."""

from typing import Any

import jax
import numpy as np
import optax

from localhessian._grid import grid
from localhessian._optional import optional
from localhessian._types import Array
from localhessian.analysis import COLORS, measure, number, style
from localhessian.lab.claims._claim import Claim, Frame, Judgement, Point, Row, Setting, Verdict, Work
from localhessian.lab.claims._trained import reduced, stages
from localhessian.lab.comparison import interval
from localhessian.lab.zoo import network

KINDS = ("plain", "batchnorm")
SIZES = {"small": (3, 4, (0, 10)), "full": (6, 12, (0, 100, 400))}
"""Convolutional blocks, channels, steps of training."""
RATE, BATCH, SIDE = 0.02, 64, 16
FIGURES = {
    "kappa_q05": "kappa_q05 of H_W",
    "kappa_plus": "kappa_plus of H_W",
    "kappa_c": "kappa of C",
    "spread": "spread of diag C",
}
"""What is compared, all the smaller the better."""
DECIDING = ("kappa_q05", "kappa_plus", "kappa_c")


def points(setting: Setting) -> list[Point]:
    """With and without normalization."""
    return [{"kind": kind, "seed": seed} for kind in KINDS for seed in setting.seeds]


def measured(point: Point, work: Work) -> list[Row]:
    """For each block between stem and head, at each stage: H_W of the block, and C of its convolution's input."""
    setting = reduced(work.setting, SIDE)
    depth, width, steps = SIZES[setting.size]
    chosen = network(point["kind"], setting.images, depth=depth, width=width)
    x, y = setting.batch(BATCH)
    blocks = [f"conv{i}" for i in range(2, depth + 1)]
    loss = optax.softmax_cross_entropy_with_integer_labels
    rows: list[Row] = []
    for stage, (done, state, accuracy) in enumerate(stages(chosen, setting, point["seed"], steps, rate=RATE)):
        work.tell(stage / len(steps), f"{done} steps")
        found = measure(chosen.chain, state.params, x, y, loss, blocks=blocks, wrt="params")
        activations = chosen.chain.forward(state.params, x)
        for block in blocks:
            of_block, place = found[block, "params"], chosen.chain.index(block)
            figures = {name: float(getattr(of_block, name)) for name in ("kappa_plus", "kappa_q05", "rank")}
            size = sum(leaf.size for leaf in jax.tree.leaves(state.params[block]))
            inputs = of_inputs(second_moments(activations[place]))
            rows.append({"steps": done, "accuracy": accuracy, "block": block, **figures, "size": size, **inputs})
    return rows


def second_moments(z: Array) -> np.ndarray:
    """C = (1/n) sum over samples and positions of a a^T, a the 3 x 3 patches: H_W of a convolution alone is C (x) I."""
    layout = ("NHWC", "HWIO", "NHWC")
    patches = jax.lax.conv_general_dilated_patches(z, (3, 3), (1, 1), "SAME", dimension_numbers=layout)
    a = np.asarray(patches, np.float64).reshape(-1, patches.shape[-1])
    return a.T @ a / len(z)


def of_inputs(c: np.ndarray) -> dict[str, float]:
    """kappa of C as it is and with its diagonal scaled to 1, and how far the diagonal is from constant.

    A constant diagonal is within a factor d of the best diagonal scaling (van der Sluis 1969), so C is within d times
    the spread of it. Entries that are always 0, of units that are never active, are left out and counted.
    """
    alive = np.diag(c) > 0
    c = c[np.ix_(alive, alive)]
    diagonal = np.diag(c)
    scaled = c / np.sqrt(np.outer(diagonal, diagonal))
    kappa_c, kappa_scaled = (float(values[-1] / values[0]) for values in map(_spectrum, (c, scaled)))
    spread = float(diagonal.max() / diagonal.min())
    told = {"kappa_c": kappa_c, "kappa_scaled": kappa_scaled, "spread": spread, "d": float(len(c))}
    return told | {"dead": float((~alive).sum())}


def _spectrum(c: np.ndarray) -> np.ndarray:
    """Ascending; what rounding leaves of zeros in float64 counts as that."""
    values = np.linalg.eigvalsh(c)
    return np.maximum(values, len(c) * np.finfo(np.float64).eps * values[-1])


def means(data: Frame) -> Frame:
    """Geometric means over the blocks, by kind, stage and seed."""
    logs = data.assign(**{name: np.log(data[name]) for name in (*FIGURES, "kappa_scaled")})
    grouped = logs.groupby(["kind", "steps", "seed"], sort=False)
    found = np.exp(grouped[[*FIGURES, "kappa_scaled"]].mean())
    share = (data["rank"] / data["size"]).groupby([data.kind, data.steps, data.seed], sort=False).mean()
    return found.assign(share=share, accuracy=grouped.accuracy.mean()).reset_index()


def better(data: Frame) -> dict[str, dict[int, bool]]:
    """For each figure and stage, whether normalization makes it smaller in every seed."""
    found = means(data)
    answers: dict[str, dict[int, bool]] = {}
    for name in FIGURES:
        wide = found.pivot_table(name, ["steps", "seed"], "kind")
        smaller = wide["batchnorm"] < wide["plain"]
        answers[name] = {int(steps): bool(part.all()) for steps, part in smaller.groupby("steps")}
    return answers


def table(data: Frame) -> str:
    """A line for each kind and stage."""
    columns = {"network": "left", "steps": "right", "accuracy": "right", "kappa_q05": "right", "kappa_plus": "right"}
    columns |= {"rank/size": "right", "kappa of C": "right", "scaled": "right", "spread of diag C": "right"}
    rows = []
    for (kind, steps), part in means(data).groupby(["kind", "steps"], sort=False):
        middle = {name: number(float(np.exp(np.log(part[name]).mean()))) for name in (*FIGURES, "kappa_scaled")}
        shares = [f"{part.share.mean():.2f}", middle["kappa_c"], middle["kappa_scaled"], middle["spread"]]
        row = [str(kind), str(steps), f"{100 * part.accuracy.mean():.0f} %", middle["kappa_q05"], middle["kappa_plus"]]
        rows.append([*row, *shares])
    note = "Geometric means over blocks and seeds. C: second moments of a convolution's input; scaled: to diagonal 1."
    return "\n".join([*grid(columns, [("", rows)]), note])


def figure(data: Frame) -> Any:
    """Each figure by stage, with a line for each seed."""
    with style():
        drawn = optional("matplotlib.figure").Figure(figsize=(7, 2.5), layout="constrained")
        axes = drawn.subplots(1, len(FIGURES))
        found = means(data)
        for ax, (name, title) in zip(axes, FIGURES.items(), strict=True):
            for color, kind in zip(COLORS, KINDS, strict=False):
                for seed, part in found[found.kind == kind].groupby("seed"):
                    label = kind if seed == found.seed.min() else None
                    ax.plot(range(len(part)), part[name], color=color, marker=".", linewidth=1, label=label)
            ax.set_xticks(range(data.steps.nunique()), [str(steps) for steps in sorted(set(data.steps))])
            ax.set(yscale="log", xlabel="steps")
            ax.set_title(title, fontsize="small")
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(KINDS))
    return drawn


def verdict(data: Frame) -> Judgement:
    """By the rule."""
    found, answers = means(data), better(data)
    stages_told = sorted(set(data.steps))
    first, last = stages_told[0], stages_told[-1]

    def told(name: str) -> str:
        values = []
        for steps in (first, last):
            wide = found[found.steps == steps].pivot_table(name, "seed", "kind")
            values.append(f"{_ratio(wide['plain'] / wide['batchnorm'])} times as large without it after {steps} steps")
        always = [str(steps) for steps, yes in answers[name].items() if yes]
        return (
            f"{FIGURES[name]} is {' and '.join(values)} (smaller with it in every seed: {', '.join(always) or 'never'})"
        )

    reason = "; ".join(map(told, FIGURES))
    if all(all(answers[name].values()) for name in DECIDING):
        return Judgement(Verdict.HOLDS, reason)
    limited = any(all(answers[name].values()) for name in ("kappa_q05", "kappa_c"))
    return Judgement(Verdict.WITH_LIMITS if limited else Verdict.FAILS, reason)


def _ratio(by_seed: Any) -> str:
    """The geometric mean, with its 95 % interval over the seeds where one is claimed."""
    logs = np.log(by_seed)
    mean = number(float(np.exp(logs.mean())))
    low, high = interval(logs)[1:3] if len(logs) > 1 else (float("nan"),) * 2
    return mean if np.isnan(low) else f"{mean} [{number(float(np.exp(low)))}, {number(float(np.exp(high)))}]"


CLAIM = Claim(
    name="batch-norm",
    title="Batch normalization improves the condition of H_W",
    says=(
        '"designing tricks" such as batch normalization "facilitate BP by improving the spectrum of local Hessian" '
        "(abstract): normalized inputs give the second moments C of a linear map a constant diagonal, which is within "
        "a factor d of the best diagonal scaling (van der Sluis)."
    ),
    rule=(
        "holds if with batch normalization the geometric means over the blocks of kappa_q05 and of kappa_plus of H_W, "
        "and of kappa of C, are smaller in every seed, at initialization and at every stage of training; with limits "
        "if that is true of kappa_q05 or of kappa of C; else it does not."
    ),
    cost={"small": "15 s", "full": "4 min on 2 cores"},
    seeds={"small": 1, "full": 5},
    data={"small": "digits", "full": "cifar10"},
    points=points,
    measure=measured,
    table=table,
    figure=figure,
    verdict=verdict,
)
