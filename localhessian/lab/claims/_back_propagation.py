"""Claim: back-propagation is one step of back-matching propagation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from localhessian._grid import grid
from localhessian._optional import optional
from localhessian._tree import floating_leaves
from localhessian._types import Context, Loss, Params, Scalar
from localhessian.analysis import COLORS, number, style
from localhessian.lab.claims._claim import Claim, Frame, Judgement, Point, Row, Setting, Verdict, Work
from localhessian.lab.zoo import CASES, case, network
from localhessian.network import Chain
from localhessian.training import GradientStep, propagate

TOLERANCES = {"float32": 2.5e-5, "float64": 1e-12}
"""Relative to the step: those of `lh.check_identities`."""
SMALL = ("batchnorm", "skip", "sigmoid-6")
NAMED: tuple[str, ...] = (
    "plain",
    "batchnorm",
    "skip",
    "linear-20",
    "relu-20",
    "tanh-20",
    "sigmoid-20",
    "gelu-20",
    "vgg11",
)
NAMED += ("vgg11-bn-by4", "resnet20-plain-by4", "resnet20-by4")
BATCH = 16


def points(setting: Setting) -> list[Point]:
    """Networks, in both precisions."""
    networks = SMALL if setting.size == "small" else (*NAMED, *CASES)
    return [
        {"network": name, "precision": precision, "seed": seed}
        for name in networks
        for precision in TOLERANCES
        for seed in setting.seeds
    ]


def measure(point: Point, work: Work) -> list[Row]:
    """For each block, how far the steps of the two are apart."""
    with jax.enable_x64(point["precision"] == "float64"):
        chain, params, objective, batch = _problem(point, work)
        gradients = jax.jit(jax.grad(objective))(params)
        with_weights = [name for name in chain.names if floating_leaves(params[name])]
        norms = {name: _norm(gradients[name]) for name in with_weights}
        # At this rate every block's step is as large as its weights, so that adding it to them rounds it little.
        largest = max(_norm(params[name]) / norm for name, norm in norms.items() if norm > 0)
        rate = jnp.asarray(largest, jnp.result_type(float))
        ours = jax.jit(lambda params: _propagated(chain, params, rate, batch))(params)
        theirs = jax.tree.map(lambda leaf, gradient: leaf - rate * gradient, params, gradients)
        apart = {name: _norm(jax.tree.map(jnp.subtract, ours[name], theirs[name])) for name in with_weights}
    return [
        {"block": name, "gradient": norm, "error": apart[name] / (largest * norm) if norm else apart[name]}
        for name, norm in norms.items()
    ]


def _problem(point: Point, work: Work) -> tuple[Chain, Any, Callable[[Any], Scalar], tuple[Any, Any, Loss, Context]]:
    """The chain, its parameters, J by the model itself as a function of them, and the batch."""
    name = point["network"]
    if name in CASES:
        made = case(name, seed=point["seed"])
        chain, params, context = made.cut
        graph, _, rest = nnx.split(made.model, nnx.Param, ...)

        def of_model(params: Params) -> Scalar:
            # The same arrays in new variables: batch normalization changes its own.
            model = nnx.merge(graph, *jax.tree.map(lambda leaf: leaf, (chain.merge(params), rest)))
            return made.loss(model(made.x), made.y).mean()

        return chain, params, of_model, (made.x, made.y, made.loss, context)
    sizes = {"depth": 3, "width": 4} if work.setting.size == "small" else {}
    chosen = network(name, work.setting.images, **sizes)
    params, context = chosen.start(jax.random.key(point["seed"]))
    x, y = work.setting.batch(BATCH)
    x, loss = jnp.asarray(x, jnp.result_type(float)), optax.softmax_cross_entropy_with_integer_labels
    objective = lambda params: loss(chosen.forward(params, x, context)[0], y).mean()
    return chosen.chain, params, objective, (x, y, loss, context)


def _propagated(chain: Chain, params: Params, rate: Scalar, batch: tuple[Any, Any, Loss, Context]) -> Params:
    x, y, loss, context = batch
    return propagate(chain, params, x, y, loss, GradientStep(rate), GradientStep(1.0), context)[0]


def _norm(tree: Any) -> float:
    """On the host in float64: squares of small gradients do not underflow."""
    return float(np.linalg.norm(np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in floating_leaves(tree)])))


def worst(data: Frame) -> Frame:
    """By network and precision: blocks, the smallest gradient and the largest error."""
    grouped = data.groupby(["network", "precision"], sort=False)
    return grouped.agg(blocks=("block", "nunique"), smallest=("gradient", "min"), error=("error", "max")).reset_index()


def table(data: Frame) -> str:
    """A line for each network and precision."""
    columns = {"network": "left", "precision": "left", "blocks": "right"}
    columns |= {"smallest gradient of a block": "right", "largest error": "right"}
    rows = [
        [row.network, row.precision, str(row.blocks), number(row.smallest), f"{row.error:.1e}"]
        for row in worst(data).itertuples()
    ]
    return "\n".join(grid(columns, [("", rows)]))


def figure(data: Frame) -> Any:
    """The error of every block, by the size of its gradient."""
    with style():
        drawn = optional("matplotlib.figure").Figure(figsize=(7, 3.6), layout="constrained")
        ax = drawn.subplots()
        for color, (precision, tolerance) in zip(COLORS, TOLERANCES.items(), strict=False):
            part = data[data.precision == precision]
            exact = np.maximum(part.error, 1e-18)
            ax.scatter(part.gradient, exact, s=9, color=color, label=precision)
            ax.axhline(tolerance, color=color, linestyle="--", linewidth=1)
        ax.set(xscale="log", yscale="log", xlabel="norm of a block's gradient")
        ax.set_ylabel("difference of the steps / step")
        ax.set_title("back-matching by gradient steps against SGD, each block; dashed: the tolerance")
        ax.legend()
    return drawn


def verdict(data: Frame) -> Judgement:
    """By the tolerances."""
    largest = data.groupby("precision").error.max()
    beyond = [name for name, error in largest.items() if not error <= TOLERANCES[str(name)]]
    reason = (
        f"the steps of {data.network.nunique()} networks differ by at most {largest['float64']:.1e} of the step in "
        f"float64 and {largest['float32']:.1e} in float32 (tolerances {TOLERANCES['float64']:.0e} and "
        f"{TOLERANCES['float32']:.1e})"
    )
    if not beyond:
        return Judgement(Verdict.HOLDS, reason)
    return Judgement(Verdict.WITH_LIMITS if beyond == ["float32"] else Verdict.FAILS, reason)


CLAIM = Claim(
    name="back-propagation",
    title="Back-propagation is one step of back-matching propagation",
    says=(
        '"We view BP as a solution of back-matching propagation which minimizes a sequence of back-matching losses '
        'each corresponding to one block of the network" (abstract): one gradient step for the weights and a unit '
        "gradient step for the inputs of every block make a step of SGD."
    ),
    rule=(
        "holds if on every block of every network the step of `lh.propagate` differs from that of SGD, by `jax.grad` "
        "of the model itself, by at most 1e-12 of the step in float64 and 2.5e-5 in float32; with limits if in float64 "
        "alone."
    ),
    cost={"small": "15 s", "full": "15 min on 2 cores"},
    seeds={"small": 1, "full": 1},
    data={"small": "digits", "full": "cifar10"},
    points=points,
    measure=measure,
    table=table,
    figure=figure,
    verdict=verdict,
)
