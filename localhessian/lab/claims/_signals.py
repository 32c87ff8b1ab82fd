"""Claim: the signal of back-propagation vanishes or explodes along depth as the spectra of H_z say."""

from typing import Any

import jax
import numpy as np
import optax

from localhessian._grid import grid
from localhessian._optional import optional
from localhessian._tree import floating_leaves
from localhessian.analysis import COLORS, style
from localhessian.curvature import local_hessian
from localhessian.lab.claims._claim import Claim, Frame, Judgement, Point, Row, Setting, Verdict, Work
from localhessian.lab.claims._dense import initialized
from localhessian.linalg import Dense, spectrum
from localhessian.network import back_match

KINDS = {
    "sigmoid, xavier": ("sigmoid", "xavier", 1.0),
    "tanh, xavier": ("tanh", "xavier", 1.0),
    "tanh, xavier x 2": ("tanh", "xavier", 2.0),
    "tanh, orthogonal": ("tanh", "orthogonal", 1.0),
    "relu, xavier": ("relu", "xavier", 1.0),
    "relu, he": ("relu", "he", 1.0),
    "relu, he x 2": ("relu", "he", 2.0),
}
"""Activation, initialization, and what its kernels are multiplied by."""
DEPTHS = {"small": (10,), "full": (10, 20, 50, 100)}
SIZES = {"small": (16, 4), "full": (64, 8)}
"""Width and samples."""
WITHIN, DECADES = 0.1, 0.3
"""The prediction is near where it is off by at most this share of itself and this many decades (a factor of two)."""
MOST, SOME = 0.9, 0.5
"""Shares of the networks that must be near."""
CORRELATED = 0.9
"""R^2 of the prediction over the networks, with limits."""


def points(setting: Setting) -> list[Point]:
    """Networks by kind and depth."""
    kinds = ("sigmoid, xavier", "relu, he", "tanh, orthogonal") if setting.size == "small" else tuple(KINDS)
    return [
        {"kind": kind, "depth": depth, "seed": seed}
        for kind in kinds
        for depth in DEPTHS[setting.size]
        for seed in setting.seeds
    ]


def measure(point: Point, work: Work) -> list[Row]:
    """log10 of |delta_b| / |delta_top| on the way down, measured and by the spectra of H_z between.

    For each sample |delta_{b-1}|^2 = <delta_b, J J^T delta_b> lies between the smallest and the largest eigenvalue of
    J J^T times |delta_b|^2; their mean, tr(H_z) / width, is what a direction without preference would have. In float64:
    in float32 the signal of deep sigmoid networks is smaller than its smallest number.

    Raises:
        ValueError: There is no signal.
    """
    with jax.enable_x64(True):
        activation, init, gain = KINDS[point["kind"]]
        width, samples = SIZES[work.setting.size]
        x, y = work.setting.batch(samples)
        x, depth = x.astype(np.float64), point["depth"]
        chain, params = initialized(x, width, depth, work.setting.images.classes, activation, init, point["seed"], gain)
        matching = back_match(chain, params, x, y, optax.softmax_cross_entropy_with_integer_labels)
        sizes = [_norms(delta) for delta in matching.displacements[1:-1]]  # of delta_1 .. delta_depth
        sent = sizes[-1] > 0  # a sample that is predicted with certainty, to rounding, sends no signal at all
        if not sent.any():
            raise ValueError("no sample sends a signal down: all are predicted with certainty, take other images.")
        logs = np.zeros((4, int(sent.sum())))  # measured, by the mean, by the smallest and the largest eigenvalue
        rows: list[Row] = []
        shown = set(np.unique(np.linspace(1, depth, 11).round().astype(int)).tolist())
        for b in range(depth, 0, -1):
            logs[0] = np.log10(sizes[b - 1][sent] / sizes[-1][sent])
            if b in shown:
                names = ("measured", "predicted", "lowest", "highest")
                middle = {name: float(np.median(log)) for name, log in zip(names, logs, strict=True)}
                slack = 1e-9 * depth
                inside = bool(np.all((logs[0] >= logs[2] - slack) & (logs[0] <= logs[3] + slack)))
                rows.append({"layer": b, **middle, "inside": inside, "silent": int((~sent).sum())})
            if b > 1:
                work.tell(1 - b / depth, "")
                operator = local_hessian(matching, f"dense{b}", "input", samples=range(samples))
                values = np.asarray(spectrum(operator, Dense()).eigenvalues)[sent]
                with np.errstate(divide="ignore"):
                    logs[1:] += 0.5 * np.log10([values.mean(1), np.maximum(values.min(1), 0), values.max(1)])
    return rows


def _norms(delta: Any) -> np.ndarray:
    """Of each sample."""
    parts = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in floating_leaves(delta)]
    return np.linalg.norm(np.concatenate(parts, axis=1), axis=1)


def networks(data: Frame) -> Frame:
    """Each network at its first layer, where the signal arrives."""
    arrived = data[data.layer == 1].copy()
    arrived["off"] = (arrived.measured - arrived.predicted).abs()
    arrived["near"] = arrived.off <= np.maximum(DECADES, WITHIN * arrived.predicted.abs())
    return arrived


def explained(data: Frame) -> float:
    """R^2 of the prediction, as it is, over the networks."""
    arrived = networks(data)
    spread = ((arrived.measured - arrived.measured.mean()) ** 2).sum()
    return float(1 - (arrived.off**2).sum() / spread)


def table(data: Frame) -> str:
    """A line for each kind and depth."""
    columns = {"network": "left", "hidden layers": "right", "decades": "right", "by mean eigenvalues": "right"}
    columns |= {"by the smallest": "right", "by the largest": "right", "near": "right"}
    rows = []
    for (kind, depth), part in networks(data).groupby(["kind", "depth"], sort=False):
        means = [part[name].mean() for name in ("measured", "predicted", "lowest", "highest")]
        rows.append([str(kind), str(depth), *(f"{value:+.1f}" for value in means), f"{part.near.sum()}/{len(part)}"])
    note = "log10 of |delta_1| / |delta_top|: medians over the samples that send a signal, means over seeds."
    return "\n".join([*grid(columns, [("", rows)]), note])


def figure(data: Frame) -> Any:
    """The deepest networks along depth; and what was predicted against what was measured of all."""
    with style():
        drawn = optional("matplotlib.figure").Figure(figsize=(7.6, 3.2), layout="constrained")
        along, against = drawn.subplots(1, 2)
        colors = (*COLORS, "#000000")
        for color, kind in zip(colors, dict.fromkeys(data.kind), strict=False):
            of_kind = data[data.kind == kind]
            middle = of_kind[of_kind.depth == data.depth.max()].groupby("layer")[["measured", "predicted"]].mean()
            along.plot(middle.index, middle.measured, color=color, label=kind)
            along.plot(middle.index, middle.predicted, color=color, linestyle="--", linewidth=1)
            arrived = networks(of_kind)
            against.scatter(arrived.predicted, arrived.measured, color=color, s=14)
        ends = [data[["measured", "predicted"]].min().min(), data[["measured", "predicted"]].max().max()]
        against.plot(ends, ends, color="gray", linewidth=1)
        along.set(xlabel="hidden layer", ylabel="log10 |delta_b| / |delta_top|")
        along.set_title(f"{data.depth.max()} layers; dashed: predicted")
        against.set(xlabel="log10 predicted by mean eigenvalues", ylabel="log10 measured at layer 1")
        against.set_title("every network")
        against.legend(*along.get_legend_handles_labels(), fontsize="x-small", loc="lower right")
    return drawn


def verdict(data: Frame) -> Judgement:
    """By the rule."""
    arrived, r_squared = networks(data), explained(data)
    near, inside = float(arrived.near.mean()), bool(data.inside.all())
    reason = (
        f"over {len(arrived)} networks the signal at the first layer is between 10^{arrived.measured.min():.1f} and "
        f"10^{arrived.measured.max():.1f} of that at the top; the mean eigenvalues of H_z predict it with R^2 = "
        f"{r_squared:.3f} in decades, near in {100 * near:.0f} % of the networks (a factor of two, or "
        f"{100 * WITHIN:.0f} % of the decades), at most {arrived.off.max():.1f} decades off; "
        + ("it always lies" if inside else "it does not always lie")
        + " between what the smallest and the largest eigenvalues allow"
    )
    if inside and near >= MOST:
        return Judgement(Verdict.HOLDS, reason)
    limited = inside and (near >= SOME or r_squared >= CORRELATED)
    return Judgement(Verdict.WITH_LIMITS if limited else Verdict.FAILS, reason)


CLAIM = Claim(
    name="signals",
    title="Signals vanish and explode along depth as the spectra of H_z say",
    says=(
        '"BP sometimes has difficulties in propagating a learning signal deep enough effectively, e.g., the vanishing '
        'gradient phenomenon", and the local Hessian is connected "to the efficiency of BP" (abstract): what a block '
        "hands down is what the eigenvalues of its H_z leave of what it gets."
    ),
    rule=(
        "holds if |delta_b| of every sample stays between the products of the smallest and of the largest eigenvalues, "
        "and the product of the mean eigenvalues predicts it at the first layer within a factor of two or "
        f"{WITHIN:.0%} of the decades in {MOST:.0%} of the networks; with limits if in {SOME:.0%} of them, or with R^2 "
        f">= {CORRELATED}."
    ),
    cost={"small": "15 s", "full": "4 min on 2 cores"},
    seeds={"small": 1, "full": 3},
    data={"small": "digits", "full": "cifar10"},
    points=points,
    measure=measure,
    table=table,
    figure=figure,
    verdict=verdict,
)
