"""Does a block mix the samples of a batch? A probe that covers every ordered pair of samples."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._tree import floating
from localhessian._types import Activations, Array, Context, Loss, Params
from localhessian.network._chain import Block

LEVELS = 16
"""Powers of two that tell samples apart in one tangent: more would reach the smallest numbers of float32."""


def couples_samples(block: Block, params: Params, z: Activations, context: Context, loss: Loss | None, y: Any) -> Array:
    """Whether any sample's output (or, with a loss, any sample's loss gradient) depends on another sample's input.

    A random tangent is compared with the same one scaled by a power of two of its own for each sample. Without
    coupling every sample's output is scaled by just that, to the bit; the digits of its index give each sample scales
    that no other has. Coupling that vanishes to first order at this very point is not seen, and is not in the
    Gauss-Newton part either.

    Returns:
        A boolean scalar. Cost: 1 + ceil(log_16 n) jvps in one batched call; no input of floating point gives False.
    """
    n = jax.tree.leaves(z)[0].shape[0]
    if not floating(z)[0] or n == 1:
        return jnp.zeros((), bool)
    phase = jnp.ones(())  # data: of a constant one the compiler would compute the noise itself, slowly
    found = _block_leaks(block.anonymous, params, z, context, phase)
    return found if loss is None else found | _loss_leaks(block.anonymous, loss, params, z, context, y, phase)


@functools.partial(jax.jit, static_argnums=0)
def _block_leaks(block: Block, params: Params, z: Activations, context: Context, phase: Array) -> Array:
    inputs, rebuild = floating(z)
    return _leaks(lambda leaves: floating(block(params, rebuild(leaves), context))[0], inputs, phase)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss_leaks(block: Block, loss: Loss, params: Params, z: Activations, context: Context, y: Any, phase) -> Array:
    leaves, rebuild = floating(block(params, z, context))
    return _leaks(lambda leaves: [loss(rebuild(leaves), y)], leaves, phase)


def _leaks(function, inputs: list[Array], phase: Array) -> Array:
    n = inputs[0].shape[0]
    index = np.arange(n)[None] // LEVELS ** np.arange(max(math.ceil(math.log(n, LEVELS)), 1))[:, None]
    scales = 2.0 ** (np.concatenate([np.zeros((1, n)), index % LEVELS]) - LEVELS // 2)
    noise = [_noise(leaf, phase) for leaf in inputs]
    _, jvp = jax.linearize(function, inputs)

    def scaled(row: Array) -> list[Array]:
        return jvp([_per_sample(row, leaf) * leaf for leaf in noise])

    rows = jnp.asarray(scales)
    moved = jax.vmap(scaled)(rows)
    return jnp.any(jnp.stack([_differ(leaf, rows) for leaf in moved]))


def _noise(leaf: Array, phase: Array) -> Array:
    """Irregular numbers between -1 and 1, by a program much smaller than a random generator's."""
    return jnp.sin(phase + 78.233 * jnp.arange(leaf.size, dtype=phase.dtype)).reshape(leaf.shape).astype(leaf.dtype)


def _differ(moved: Array, rows: Array) -> Array:
    """Whether outputs (r, n, ..) differ from those of the first row, scaled; by more than the smallest numbers."""
    back = moved / jax.vmap(_per_sample)(rows, moved)
    return jnp.any(jnp.abs(back - back[:1]) > 2.0**LEVELS * float(jnp.finfo(moved.dtype).tiny))


def _per_sample(row: Array, leaf: Array) -> Array:
    return row.reshape(row.shape + (1,) * (leaf.ndim - 1)).astype(leaf.dtype)
