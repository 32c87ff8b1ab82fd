"""Claim: a skip connection around a small enough branch bounds the condition number of H_z."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from localhessian._grid import grid
from localhessian._optional import optional
from localhessian._types import Array, Params
from localhessian.analysis import COLORS, number, style
from localhessian.curvature import local_hessian
from localhessian.lab._data import check_images
from localhessian.lab.claims._claim import Claim, Frame, Judgement, Point, Row, Setting, Verdict, Work
from localhessian.lab.claims._trained import reduced, stages
from localhessian.lab.comparison import State
from localhessian.lab.zoo import Network, built, nnx_network, resnet
from localhessian.linalg import Dense, condition_number, spectrum
from localhessian.network import TracedChain, back_match, chain_from_nnx

KINDS = {"skips": (True, 1.0), "skips, branches x 0.1": (True, 0.1), "no skips": (False, 1.0)}
"""Whether there are skip connections, and what the last kernel of each branch is multiplied by at initialization."""
DEPTHS = {"small": (8,), "full": (20, 56)}
STEPS = {"small": (0, 10), "full": (0, 50, 200)}
WIDTH, RATE, SAMPLES, FOR_STATISTICS = 4, 0.02, 2, 256
SIDE = 8
"""Pixels: H_z of the first stage is of order 256."""
BLOCKS = 8
"""Measured of each network, at most."""
SLACK = 1.001
"""Rounding of eps and kappa in float32."""
MOST = 0.9
"""Share of the blocks and samples with eps < 1 where the claim holds."""


def points(setting: Setting) -> list[Point]:
    """Networks by depth and kind."""
    return [
        {"depth": depth, "kind": kind, "seed": seed}
        for depth in DEPTHS[setting.size]
        for seed in setting.seeds
        for kind in KINDS
    ]


def measure(point: Point, work: Work) -> list[Row]:
    """For each block that keeps the shape, each of some samples and each stage: eps and the spectrum of H_z.

    The network is in evaluation mode, with the statistics of the first training images, so that samples are apart.
    """
    setting = reduced(work.setting, SIDE)
    has_skips, scale = KINDS[point["kind"]]
    images = setting.images
    network, tested = _networks(point["depth"], has_skips, images.classes, images.train_x.shape[1:])
    rows: list[Row] = []
    steps = STEPS[setting.size]
    at_stages = stages(network, setting, point["seed"], steps, rate=RATE, start=lambda state: _scaled(state, scale))
    for stage, (done, state, accuracy) in enumerate(at_stages):
        work.tell(stage / len(steps), f"{done} steps")
        chain: Any = network.chain
        tested.take_over(chain.merge(state.params), setting.batch(FOR_STATISTICS)[0])
        found = tested.rows(*setting.batch(SAMPLES), has_skips)
        rows += [{"steps": done, "accuracy": accuracy, **row} for row in found]
    return rows


@functools.lru_cache(maxsize=2)
def _networks(depth: int, skip: bool, classes: int, shape: tuple[int, ...]) -> tuple[Network, "Tested"]:
    """To train, and to test; of every seed the same, with their compiled programs."""
    name = f"resnet{depth}{'' if skip else '-plain'}"
    check_images(name, shape)

    def build(rngs: Any) -> nnx.Module:
        sizes: dict[str, Any] = {"classes": classes, "channels": shape[-1], "width": WIDTH}
        return resnet(depth, skip=skip, preactivation=True, rngs=rngs, **sizes)

    x = np.zeros((SAMPLES, *shape), np.float32)
    network = nnx_network(name, build, x, at="layers.*")
    model = built(build, jax.random.key(0))
    model.eval()
    return network, Tested(model, chain_from_nnx(model, x, at="layers.*").chain)


def _scaled(state: State, scale: float) -> State:
    """With the last kernel of each branch smaller."""

    def smaller(path: Any, leaf: Array) -> Array:
        return scale * leaf if "conv2" in jax.tree_util.keystr(path) else leaf

    return state._replace(params=jax.tree_util.tree_map_with_path(smaller, state.params))


@dataclasses.dataclass
class Tested:
    """A network in evaluation mode, cut once, whose parameters and statistics are changed."""

    model: Any
    chain: TracedChain

    def take_over(self, params: Params, x: Array) -> None:
        """These parameters of the model, and the statistics of these images, layer by layer."""
        nnx.update(self.model, params)
        norms = [module for _, module in nnx.iter_graph(self.model) if isinstance(module, nnx.BatchNorm)]
        self.model.train()
        for norm in norms:
            norm.momentum = 0.0
        self.model(x)
        self.model.eval()

    def has_branch(self, layer: int) -> bool:
        """Whether it is a residual block."""
        return hasattr(self.model.layers[layer], "conv2")

    def rows(self, x: Array, y: Array, has_skips: bool) -> list[Row]:
        """A row for each block that keeps the shape (at most `BLOCKS`, evenly spaced) and each sample."""
        _, params, context = nnx.split(self.model, nnx.Param, ...)
        of_blocks = self.chain.split(params)
        loss = optax.softmax_cross_entropy_with_integer_labels
        matching = back_match(self.chain, of_blocks, x, y, loss, context)
        rows: list[Row] = []
        z = matching.activations
        same = [i for i in range(len(self.chain)) if self.has_branch(i) and z[i].shape == z[i + 1].shape]
        for layer in same[:: 1 + len(same) // BLOCKS]:
            name = self.chain.names[layer]
            found = spectrum(local_hessian(matching, name, "input", samples=range(SAMPLES)), Dense())
            kappa = condition_number(found)
            eps = _branch_norms(self.model.layers[layer], z[layer]) if has_skips else [float("nan")] * SAMPLES
            for sample in range(SAMPLES):
                values = np.asarray(found.eigenvalues[sample], np.float64)
                values = np.where(values > np.asarray(kappa.cutoff)[sample] ** 2, values, 0)
                with np.errstate(divide="ignore"):
                    kappa_5 = values[-1] / values[int(0.05 * len(values))]
                figures = {"kappa": float(kappa.whole[sample]), "kappa_5": float(kappa_5)}
                rank = int(kappa.rank[sample])
                rows.append({"layer": layer, "sample": sample, "eps": float(eps[sample]), **figures, "rank": rank})
                rows[-1] = {**rows[-1], "size": len(values)}
        return rows


def _branch_norms(block: Any, z: Array) -> list[float]:
    """||d phi / dz||_2 of each sample, phi = block - identity, from the block's own Jacobian."""
    graph, state = nnx.split(block)
    jacobians = np.asarray(_jacobians(graph, state, z))
    return [float(np.linalg.svd(one - np.eye(len(one), dtype=one.dtype), compute_uv=False)[0]) for one in jacobians]


@functools.partial(jax.jit, static_argnums=0)
def _jacobians(graph: Any, state: Any, z: Array) -> Array:
    """Of each sample, (n, d, d)."""

    def flat(vector: Array) -> Array:
        return nnx.merge(graph, state)(vector.reshape(1, *z.shape[1:])).ravel()

    return jax.vmap(jax.jacfwd(flat))(z.reshape(len(z), -1))


def bounds(data: Frame) -> Any:
    """((1 + eps) / (1 - eps))^2, infinite where eps >= 1."""
    inside = data.eps.where(data.eps < 1)
    return (((1 + inside) / (1 - inside)) ** 2).fillna(np.inf)


def summary(data: Frame) -> Frame:
    """By depth, kind and stage."""
    told = data.assign(below=data.eps < 1, bound=bounds(data), singular=data["rank"] < data["size"])
    grouped = told.groupby(["depth", "kind", "steps"], sort=False)
    return grouped.agg(
        eps_low=("eps", "min"),
        eps=("eps", "median"),
        eps_high=("eps", "max"),
        below=("below", "mean"),
        kappa=("kappa", "median"),
        bound=("bound", "median"),
        kappa_5=("kappa_5", "median"),
        singular=("singular", "mean"),
        accuracy=("accuracy", "mean"),
    ).reset_index()


def table(data: Frame) -> str:
    """A line for each depth, kind and stage."""
    columns = {"ResNet": "left", "kind": "left", "steps": "right", "accuracy": "right", "eps [range]": "right"}
    columns |= {"eps < 1": "right", "kappa": "right", "bound": "right", "kappa_5": "right", "singular": "right"}
    rows = []
    for row in summary(data).itertuples():
        has_eps = np.isfinite(row.eps)
        rows.append(
            [str(row.depth), row.kind, str(row.steps), f"{100 * row.accuracy:.0f} %"]
            + ([f"{row.eps:.2f} [{row.eps_low:.2f}, {row.eps_high:.2f}]"] if has_eps else ["-"])
            + [f"{100 * row.below:.0f} %" if has_eps else "-", number(row.kappa)]
            + [number(row.bound) if has_eps else "-", number(row.kappa_5), f"{100 * row.singular:.0f} %"]
        )
    note = (
        "Medians over seeds, blocks and samples. kappa_5: largest eigenvalue over the 5 % quantile of all, zeros too."
    )
    return "\n".join([*grid(columns, [("", rows)]), note, "singular: share of the H_z that have not full rank."])


def figure(data: Frame) -> Any:
    """kappa against eps with the bound; and kappa_5 by stage, with and without skips."""
    ticker = optional("matplotlib.ticker")
    with style():
        drawn = optional("matplotlib.figure").Figure(figsize=(8.5, 3.6), layout="constrained")
        against, through = drawn.subplots(1, 2)
        for color, kind in zip(COLORS, KINDS, strict=False):
            part = data[data.kind == kind]
            finite = part[np.isfinite(part.eps) & np.isfinite(part.kappa)]
            if len(finite):
                against.scatter(finite.eps, finite.kappa, s=5, color=color, alpha=0.5, label=kind)
            for depth, dash in zip(dict.fromkeys(part.depth), ("-", "--"), strict=False):
                middle = part[part.depth == depth].groupby("steps").kappa_5.median()
                missing = "" if np.isfinite(middle).all() else " (infinite)"
                label = f"ResNet-{depth}, {kind}{missing}"
                through.plot(range(len(middle)), middle, dash, color=color, marker=".", label=label)
        line = np.linspace(0, 0.97, 100)
        against.plot(line, ((1 + line) / (1 - line)) ** 2, color="black", linewidth=1, label="((1+eps)/(1-eps))^2")
        against.axvline(1, color="black", linestyle=":", linewidth=1)
        against.set(xscale="symlog", yscale="log", xlabel="eps = ||d phi / dz||", ylabel="kappa of H_z")
        against.set_title("blocks and samples; the bound ends at 1")
        against.set_xticks([0, 0.5, 1, 2, 5], ["0", "0.5", "1", "2", "5"])
        through.set_xticks(range(data.steps.nunique()), [str(steps) for steps in sorted(set(data.steps))])
        through.set(yscale="log", xlabel="steps", ylabel="median kappa_5 of H_z", title="through training")
        against.legend(fontsize="x-small", loc="upper left")
        low, high = through.get_ylim()
        through.set_ylim(low, high * (high / low) ** 0.8)  # above the lines, where there is room for the words
        through.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        through.yaxis.set_major_formatter(ticker.ScalarFormatter())
        through.yaxis.set_minor_locator(ticker.NullLocator())
        through.legend(fontsize="x-small", loc="upper left")
    return drawn


def verdict(data: Frame) -> Judgement:
    """By the rule."""
    inside = data[data.eps < 1]
    violated = int((inside.kappa > SLACK * bounds(inside)).sum())
    standard, small = (data[data.kind == kind] for kind in list(KINDS)[:2])
    below, below_small = float((standard.eps < 1).mean()), float((small.eps < 1).mean())
    medians = data.pivot_table("kappa_5", ["depth", "steps", "seed"], "kind", aggfunc="median", dropna=False)
    better = (medians["skips"] < medians["no skips"]).mean()
    reason = (
        f"eps < 1 in {100 * below:.0f} % of {len(standard)} blocks and samples with skips (median eps "
        f"{standard.eps.median():.2f}), in {100 * below_small:.0f} % where the branches begin ten times smaller; of "
        f"the {len(inside)} with eps < 1, {violated} exceed the bound; the median kappa_5 of H_z is smaller with skips "
        f"than without in {100 * better:.0f} % of the networks and stages ({number(medians['skips'].median())} against "
        f"{number(medians['no skips'].median())})"
    )
    if violated or better < 1:
        return Judgement(Verdict.FAILS, reason)
    return Judgement(Verdict.HOLDS if below >= MOST else Verdict.WITH_LIMITS, reason)


CLAIM = Claim(
    name="skips",
    title="Skip connections bound the condition number of H_z",
    says=(
        '"designing tricks" such as skip connections "facilitate BP by improving the spectrum of local Hessian" '
        "(abstract): z + phi(z) with ||d phi/dz||_2 <= eps < 1 has kappa(H_z) <= ((1 + eps)/(1 - eps))^2. Reviewer 3 "
        "doubted that eps < 1 in practice."
    ),
    rule=(
        f"holds if no H_z with eps < 1 exceeds the bound, eps < 1 in {100 * MOST:.0f} % of the blocks and samples of "
        "networks with skips, at initialization and through training, and their median kappa_5 is below that of the "
        "networks without skips in every seed, depth and stage; with limits if all but that on eps; else it does not."
    ),
    cost={"small": "30 s", "full": "20 min on 2 cores"},
    seeds={"small": 1, "full": 3},
    data={"small": "digits", "full": "cifar10"},
    points=points,
    measure=measure,
    table=table,
    figure=figure,
    verdict=verdict,
)
