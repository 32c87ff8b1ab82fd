"""Scalars that stand for local Hessians: estimates of the mean curvature of a block, by jvps only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from localhessian._tree import floating
from localhessian._types import Activations, Array, Context, Key, Loss, Params, Scalar
from localhessian.curvature._recognize import loss_hessian
from localhessian.network import Block

SCALARS = ("range_mean", "mean", "max")
"""The names that `local_scalar` takes."""


def check_scalar(name: str) -> None:
    """Refuse an unknown scalar.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in SCALARS:
        raise ValueError(f"`scalar` must be one of {', '.join(SCALARS)}, got {name!r}.")


def local_scalar(
    block: Block,
    loss: Loss | None,
    wrt: str,
    scalar: str,
    params: Params,
    z: Activations,
    y: Any,
    context: Context,
    key: Key,
    probes: int = 2,
) -> Scalar:
    """One number m for H_W or H_z of a block (Gauss-Newton part, whole batch), estimated with random vectors.

    With H = s J^T S J and random signs v, w: tr H = s E <Jv, S J v>, tr H^2 = s^2 E <Jv, S J w>^2.

    Args:
        block: The block.
        loss: Of the last block; None before it (S = I).
        wrt: `"params"` (s = 1/n) or `"input"` (s = 1).
        scalar: `range_mean` = tr(H^2) / tr(H), the mean curvature where gradients lie; `mean` = tr(H) / dimension;
            `max`: a lower estimate of lambda_max, the largest ||Jv||-quotient that the probes and one step of the
            Gram matrix of their images show.
        params: W.
        z: The block's input.
        y: What the loss compares with.
        context: Of the block.
        key: Of the random vectors.
        probes: Random vectors, at least 2.

    Returns:
        m >= 0. Cost: one forward pass of the block and `probes` jvps; no vjp of it.

    Source: docs/theory.md, 5; Hutchinson (1989).
    """
    n = jax.tree.leaves(z)[0].shape[0]
    variables, rebuild = floating(params if wrt == "params" else z)

    def outputs(leaves: list[Array]) -> list[Array]:
        filled = rebuild(leaves)
        return floating(block(filled, z, context) if wrt == "params" else block(params, filled, context))[0]

    images = _images(outputs, variables, key, probes)
    curved = images if loss is None else jax.vmap(loss_hessian(loss, block(params, z, context), y))(images)
    gram = sum(_gram(one, two) for one, two in zip(images, curved, strict=True))
    gram = jnp.asarray(gram) / (n if wrt == "params" else 1)
    size = sum(leaf.size for leaf in variables)
    trace = jnp.maximum(jnp.mean(jnp.diagonal(gram)), 0)
    if scalar == "mean":
        return trace / size
    different = ~jnp.eye(probes, dtype=bool)
    squares = jnp.sum(jnp.where(different, gram**2, 0)) / (probes * (probes - 1))
    if scalar == "range_mean":
        return jnp.where(trace > 0, squares / jnp.where(trace > 0, trace, 1), 0)
    # lambda_max lies between sqrt(tr H^2 / rank) and sqrt(tr H^2); the probes' own largest quotient is a floor.
    return jnp.maximum(jnp.max(jnp.diagonal(gram)) / size, jnp.sqrt(squares))


def _images(outputs: Callable, variables: list[Array], key: Key, probes: int) -> list[Array]:
    """J v of random signs, stacked on axis 0; the forward pass is shared."""

    def image(key: Key) -> list[Array]:
        keys = jax.random.split(key, len(variables))
        signs = [jax.random.rademacher(k, v.shape, v.dtype) for k, v in zip(keys, variables, strict=True)]
        return jax.jvp(outputs, (variables,), (signs,))[1]

    return jax.vmap(image)(jax.random.split(key, probes))


def _gram(one: Array, two: Array) -> Array:
    rows = one.shape[0]
    return jnp.matmul(one.reshape(rows, -1), two.reshape(rows, -1).T, precision=jax.lax.Precision.HIGHEST)
