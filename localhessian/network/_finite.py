"""Numbers and derivatives that are not finite: one sentence with the block, and the operation that made them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._mesh import is_elsewhere
from localhessian._programs import at_once, compiled
from localhessian._tree import floating, floating_leaves, is_floating
from localhessian._types import Activations, Context, Loss, Params
from localhessian.network._birth import birth
from localhessian.network._chain import Chain


def validate_derivatives(
    chain: Chain,
    params: dict[str, Params],
    y: Any,
    loss: Loss,
    context: Context,
    activations: tuple[Activations, ...],
    residuals: tuple[Activations, ...],
    gradients: dict[str, Params],
) -> None:
    """Check that back-propagation stays finite.

    Raises:
        ValueError: the message names the block where it does not, and the operation.
    """
    if all_finite((residuals, gradients)):
        return
    why = functools.partial(birth, _derivative_of_loss(loss), activations[-1], y)
    what = "the derivative of the loss by the network's output"
    check_finite(what, residuals[-1], "the loss is finite, its derivative is ", why)
    for b in range(len(chain), 0, -1):
        block, z = chain.blocks[b - 1], activations[b - 1]
        why = functools.partial(birth, _pullback(block), params[block.name], z, residuals[b], context)
        for side, tree in (("parameters", gradients[block.name]), ("input", residuals[b - 1] if b > 1 else None)):
            what = f"the derivative of block `{block.name}` by its {side}"
            check_finite(what, tree, "its output is finite, its derivative is ", why)


def _pullback(block: Any) -> Any:
    """(params, z, cotangent, context) -> the derivatives by floating-point parameters and input."""

    def pull(params: Any, z: Any, cotangent: Any, context: Any) -> Any:
        (weights, rebuild), (inputs, refill) = floating(params), floating(z)
        outputs = lambda weights, inputs: floating_leaves(block(rebuild(weights), refill(inputs), context))
        return jax.vjp(outputs, weights, inputs)[1](floating_leaves(cotangent))

    return pull


def _derivative_of_loss(loss: Loss) -> Any:
    def derivative(z: Any, y: Any) -> Any:
        outputs, rebuild = floating(z)
        return jax.grad(lambda leaves: loss(rebuild(leaves), y).sum())(outputs)

    return derivative


def check_finite(what: str, tree: Any, hint: str = "", why: Callable[[], str] = str) -> None:
    """Refuse a tree with a floating-point leaf that is not finite.

    Raises:
        ValueError: What it is, the hint (else that they must be removed), and why, found out only now.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not all_finite(leaf):
            place = f" at `{jax.tree_util.keystr(path)}`" if path else ""
            verb, whom = ("are", "them") if what.startswith("the parameters") else ("is", "it")
            hint = hint or f"remove NaN and infinity from {whom}"
            raise ValueError(f"{what} {verb} not finite{place}: {hint}{why()}.")


def all_finite(tree: Any) -> bool:
    """Whether every floating-point number is."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    if jax.default_backend() == "cpu" and not is_elsewhere(leaves):  # shared memory, and no program for each shape
        return all(bool(np.all(np.isfinite(np.asarray(leaf)))) for leaf in leaves)
    with at_once():  # they are numbers also where others are traced
        return bool(_all_finite(leaves))


@compiled
def _all_finite(leaves: list[Any]) -> Any:
    """One program, whatever there is to look at."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else True
