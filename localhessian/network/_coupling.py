"""Does a block mix the samples of a batch? A probe that covers every ordered pair of samples."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._tree import floating, is_concrete
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
        A boolean scalar. Cost: 1 + ceil(log_16 n) jvps; no input of floating point gives False.
    """
    n = jax.tree.leaves(z)[0].shape[0]
    if not floating(z)[0] or n == 1:
        return jnp.zeros((), bool)
    phase = jnp.ones(())  # data: of a constant one the compiler would compute the noise itself, slowly
    # One after another by the same program: side by side in one product they would round differently.
    scales = list(_scales(n))
    found = _differ([_pushed(block.anonymous, params, z, context, phase, row) for row in scales])
    if loss is None:
        return found
    of_loss = [_pushed_by_loss(block.anonymous, loss, params, z, context, y, phase, row) for row in scales]
    return found | _differ(of_loss)


def _scales(n: int) -> np.ndarray:
    """Powers of two for every sample, (r, n): all equal, then one row for each digit of its index."""
    index = np.arange(n)[None] // LEVELS ** np.arange(max(math.ceil(math.log(n, LEVELS)), 1))[:, None]
    return 2.0 ** (np.concatenate([np.zeros((1, n)), index % LEVELS]) - LEVELS // 2)


@functools.partial(jax.jit, static_argnums=0)
def _pushed(block: Block, params: Params, z: Activations, context: Context, phase: Array, row: Array) -> list[Array]:
    inputs, rebuild = floating(z)
    return _moved(lambda leaves: floating(block(params, rebuild(leaves), context))[0], inputs, phase, row)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pushed_by_loss(
    block: Block, loss: Loss, params: Params, z: Activations, context: Context, y: Any, phase: Array, row: Array
) -> list[Array]:
    leaves, rebuild = floating(block(params, z, context))
    return _moved(lambda leaves: [loss(rebuild(leaves), y)], leaves, phase, row)


def _moved(function: Callable, inputs: list[Array], phase: Array, row: Array) -> list[Array]:
    """How the outputs move with the inputs, each sample's by its power of two, which is taken off again."""
    tangents = [_per_sample(row, leaf) * _noise(leaf, phase) for leaf in inputs]
    return [leaf / _per_sample(row, leaf) for leaf in jax.jvp(function, (inputs,), (tangents,))[1]]


def _differ(moved: list[list[Array]]) -> Array:
    """Whether the outputs differ from the first ones, by more than the smallest numbers."""
    xp: Any = np if is_concrete(moved) else jnp  # on the host no shape needs a program
    first, *others = [[xp.asarray(leaf) for leaf in leaves] for leaves in moved]
    tiny = [2.0**LEVELS * float(jnp.finfo(leaf.dtype).tiny) for leaf in first]
    with np.errstate(invalid="ignore"):  # infinity less infinity: an overflow, told by the check of the outputs
        pairs = [(xp.abs(a - b), t) for other in others for a, b, t in zip(other, first, tiny, strict=True)]
    return jnp.asarray(xp.any(xp.stack([xp.any(gap > t) for gap, t in pairs])))


def _noise(leaf: Array, phase: Array) -> Array:
    """Irregular numbers between -1 and 1, by a program much smaller than a random generator's."""
    return jnp.sin(phase + 78.233 * jnp.arange(leaf.size, dtype=phase.dtype)).reshape(leaf.shape).astype(leaf.dtype)


def _per_sample(row: Array, leaf: Array) -> Array:
    return row.reshape(row.shape + (1,) * (leaf.ndim - 1)).astype(leaf.dtype)
