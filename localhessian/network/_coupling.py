"""Does a block mix the samples of a batch? A probe that covers every ordered pair of samples."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from localhessian._tree import floating
from localhessian._types import Activations, Array, Context, Loss, Params
from localhessian.network._chain import Block


def couples_samples(block: Block, params: Params, z: Activations, context: Context, loss: Loss | None, y: Any) -> Array:
    """Whether any sample's output (or, with a loss, any sample's loss gradient) depends on another sample's input.

    A random tangent on the samples whose index has bit j set must leave the others exactly at zero; with every bit
    and its complement, every ordered pair of samples is told apart by some tangent. Coupling that vanishes to first
    order at this very point is not seen, and is not in the Gauss-Newton part either.

    Returns:
        A boolean scalar. Cost: 2 ceil(log2 n) jvps in one batched call; no input of floating point gives False.
    """
    inputs, rebuild = floating(z)
    n = jax.tree.leaves(z)[0].shape[0]
    if not inputs or n == 1:
        return jnp.zeros((), bool)

    def outputs(leaves):
        return floating(block(params, rebuild(leaves), context))[0]

    found = _leaks(outputs, inputs, n)
    if loss is not None:
        last = block(params, z, context)
        leaves, rebuild_last = floating(last)
        found |= _leaks(lambda leaves: [loss(rebuild_last(leaves), y)], leaves, n)
    return found


def _leaks(function, inputs: list[Array], n: int) -> Array:
    bits = (jnp.arange(n)[None, :] >> jnp.arange(math.ceil(math.log2(n)))[:, None]) & 1
    masks = jnp.concatenate([bits, 1 - bits]).astype(bool)
    keys = jax.random.split(jax.random.key(0), len(inputs))
    noise = [jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, inputs, strict=True)]
    _, jvp = jax.linearize(function, inputs)

    def leaks(mask):
        tangents = jvp([jnp.where(_per_sample(mask, leaf), leaf, 0) for leaf in noise])
        return jnp.any(jnp.stack([jnp.any((leaf != 0) & ~_per_sample(mask, leaf)) for leaf in tangents]))

    return jnp.any(jax.vmap(leaks)(masks))


def _per_sample(mask: Array, leaf: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - 1))
