"""Claim: orthogonal initialization makes H_z well conditioned."""

from typing import Any

import numpy as np
import optax

from localhessian._grid import grid
from localhessian._optional import optional
from localhessian.analysis import COLORS, measure, number, style
from localhessian.lab.claims._claim import Claim, Frame, Judgement, Point, Row, Setting, Verdict, Work
from localhessian.lab.claims._dense import initialized

ACTIVATIONS = ("linear", "tanh", "relu")
INITS = ("orthogonal", "he", "xavier")
SIZES = {"small": (32, 6, 4), "full": (128, 50, 8)}
"""Width, hidden layers, samples."""
EXACT = 1.001
"""kappa_plus of an isometry, to rounding in float32."""
NEAR = 4.0
"""kappa_plus up to which a block counts as nearly isometric: its singular values lie within a factor of two."""
MOST = 0.9
"""Share of the blocks that must be nearly isometric where the claim holds."""


def points(setting: Setting) -> list[Point]:
    """Activations and initializations."""
    return [
        {"activation": activation, "init": init, "seed": seed}
        for activation in ACTIVATIONS
        for init in INITS
        for seed in setting.seeds
    ]


def measured_at(depth: int) -> list[int]:
    """Hidden layers with as many inputs as units: each of the first ten, then every fifth."""
    return [layer for layer in range(2, depth + 1) if layer <= 10 or layer % 5 == 0]


def measure_one(point: Point, work: Work) -> list[Row]:
    """H_z of hidden layers, medians over the samples."""
    width, depth, samples = SIZES[work.setting.size]
    x, y = work.setting.batch(samples)
    chain, params = initialized(
        x, width, depth, work.setting.images.classes, point["activation"], point["init"], point["seed"]
    )
    layers = measured_at(depth)
    blocks = [f"dense{layer}" for layer in layers]
    loss = optax.softmax_cross_entropy_with_integer_labels
    found = measure(chain, params, x, y, loss, blocks=blocks, wrt="input", samples_per_block=samples)
    rows: list[Row] = []
    for layer, block in zip(layers, blocks, strict=True):
        of_block = found[block, "input"]
        names = ("rank", "lambda_max", "lambda_min_nonzero", "kappa_plus", "kappa_q05")
        rows.append({"layer": layer, "size": width, **{name: float(getattr(of_block, name)) for name in names}})
    return rows


def isometric(data: Frame) -> Any:
    """Of each row, whether the block is nearly an isometry."""
    return (data["rank"] == data["size"]) & (data.kappa_plus <= NEAR)


def summary(data: Frame) -> Frame:
    """By activation and initialization, over seeds and layers."""
    told = data.assign(share=data["rank"] / data["size"], isometric=isometric(data))
    grouped = told.groupby(["activation", "init"], sort=False)
    return grouped.agg(
        kappa_plus=("kappa_plus", "median"),
        kappa_q05=("kappa_q05", "median"),
        share=("share", "median"),
        lowest=("share", "min"),
        isometric=("isometric", "mean"),
    ).reset_index()


def table(data: Frame) -> str:
    """A line for each activation and initialization."""
    columns = {"activation": "left", "initialization": "left", "kappa_plus": "right", "kappa_q05": "right"}
    columns |= {"rank/size": "right", "smallest": "right", "nearly isometric": "right"}
    rows = []
    for row in summary(data).itertuples():
        shares = [f"{row.share:.2f}", f"{row.lowest:.2f}", f"{100 * row.isometric:.0f} %"]
        rows.append([row.activation, row.init, number(row.kappa_plus), number(row.kappa_q05), *shares])
    note = f"Medians over seeds and layers. Nearly isometric: full rank and kappa_plus at most {NEAR:g}."
    return "\n".join([*grid(columns, [("", rows)]), note])


def figure(data: Frame) -> Any:
    """kappa_plus and the share rank / size along depth, a column for each activation."""
    with style():
        drawn = optional("matplotlib.figure").Figure(figsize=(7, 4.1), layout="constrained")
        axes = drawn.subplots(2, len(ACTIVATIONS), sharex=True, sharey="row")
        for column, activation in zip(axes.T, ACTIVATIONS, strict=True):
            for color, dash, init in zip(COLORS, ("-", "-", ":"), INITS, strict=False):
                part = data[(data.activation == activation) & (data.init == init)]
                by_layer = part.assign(share=part["rank"] / part["size"]).groupby("layer")
                for ax, quantity in zip(column, ("kappa_plus", "share"), strict=True):
                    middle, low, high = (getattr(by_layer[quantity], name)() for name in ("median", "min", "max"))
                    ax.plot(middle.index, middle, color=color, linestyle=dash, label=init)
                    ax.fill_between(middle.index, low, high, color=color, alpha=0.2, linewidth=0)
            column[0].set(title=activation, yscale="log")
            column[1].set(xlabel="hidden layer", ylim=(0, 1.05))
        axes[0, 0].set_ylabel("kappa_plus of H_z")
        axes[1, 0].set_ylabel("rank / size")
        axes[0, -1].legend()
    return drawn


def verdict(data: Frame) -> Judgement:
    """By the rule."""
    of_linear = data[(data.activation == "linear") & (data.init == "orthogonal")]
    exact = bool((of_linear["rank"] == of_linear["size"]).all()) and of_linear.kappa_plus.max() <= EXACT
    curved = [activation for activation in ACTIVATIONS if activation != "linear"]
    shares = {one: _of(data, one, "orthogonal")["isometric"] for one in curved}
    better = [one for one in curved if _is_better(data, one)]
    told = "; ".join(
        f"{one}: {100 * shares[one]:.0f} % of the layers nearly isometric, median kappa_q05 "
        + ", ".join(f"{number(_of(data, one, init)['kappa_q05'])} {init}" for init in INITS)
        + f", median rank/size {_of(data, one, 'orthogonal')['share']:.2f}"
        for one in curved
    )
    reason = f"linear: kappa_plus at most {of_linear.kappa_plus.max():.5f} with orthogonal kernels; {told}"
    if exact and all(share >= MOST for share in shares.values()):
        return Judgement(Verdict.HOLDS, reason)
    return Judgement(Verdict.WITH_LIMITS if exact and better else Verdict.FAILS, reason)


def _of(data: Frame, activation: str, init: str) -> Any:
    told = summary(data)
    return told[(told.activation == activation) & (told.init == init)].iloc[0]


def _is_better(data: Frame, activation: str) -> bool:
    """Whether in every seed the orthogonal kernels have the smallest median kappa_q05."""
    part = data[data.activation == activation]
    medians = part.pivot_table("kappa_q05", "seed", "init", aggfunc="median")
    others = medians.drop(columns="orthogonal").min(axis=1)
    return bool(np.all(medians["orthogonal"] < others))


CLAIM = Claim(
    name="orthogonal",
    title="Orthogonal initialization makes H_z well conditioned",
    says=(
        'that "designing tricks" such as orthogonal initialization "facilitate BP by improving the spectrum of local '
        'Hessian" (abstract): a linear block with orthogonal weights has H_z = I.'
    ),
    rule=(
        f"holds if with orthogonal kernels every linear layer has full rank and kappa_plus <= {EXACT}, and of the "
        f"layers with tanh and of those with ReLU {100 * MOST:.0f} % are nearly isometric (full rank, kappa_plus <= "
        f"{NEAR:g}); with limits if the linear ones are, and with tanh or ReLU the median kappa_q05 is smaller than "
        "with He's and Xavier's kernels in every seed."
    ),
    cost={"small": "15 s", "full": "4 min on 2 cores"},
    seeds={"small": 1, "full": 5},
    data={"small": "digits", "full": "cifar10"},
    points=points,
    measure=measure_one,
    table=table,
    figure=figure,
    verdict=verdict,
)
