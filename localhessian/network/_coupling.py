"""Does a block mix the samples of a batch? A probe that covers every ordered pair of samples."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._tree import floating, is_concrete, ravel
from localhessian._types import Activations, Array, Loss
from localhessian.linalg import LinearMap

LEVELS = 16
"""Powers of two that tell samples apart in one tangent: more would reach the smallest numbers of float32."""


def couples_samples(by_input: LinearMap | None, before: Activations, after: Activations) -> Array:
    """Whether any sample's output of a block depends on another sample's input.

    A random tangent is compared with the same one scaled by a power of two of its own for each sample. Without
    coupling every sample's output is scaled by just that, to the bit; the digits of its index give each sample scales
    that no other has. Coupling that vanishes to first order at this very point is not seen, and is not in the
    Gauss-Newton part either.

    Args:
        by_input: The Jacobian of the block; None where its input has no floating-point leaf.
        before: z_{b-1}.
        after: z_b.

    Returns:
        A boolean scalar. Cost: 1 + ceil(log_16 n) jvps.
    """
    if by_input is None:
        return jnp.zeros((), bool)
    return _differ(by_input.mv, floating(before)[0], floating(after)[0], by_input.dtype)


def loss_couples_samples(loss: Loss, losses: Array, z: Activations, y: Any) -> Array:
    """Whether any sample's loss depends on another sample's output; as `couples_samples`."""
    outputs = floating(z)[0]
    return _differ(lambda v: _push_by_loss(loss, z, y, v), outputs, [losses], jnp.result_type(*outputs))


@jax.jit(static_argnums=0)
def _push_by_loss(loss: Loss, z: Activations, y: Any, v: Array) -> Array:
    outputs, rebuild = floating(z)
    return jax.jvp(lambda leaves: loss(rebuild(leaves), y), (outputs,), (ravel(outputs)[1](v),))[1]


def _differ(push, inputs: list[Array], outputs: list[Array], dtype: Any) -> Array:
    """Whether the outputs move otherwise than by their own sample's power of two, beyond the smallest numbers."""
    if len(inputs[0]) == 1:
        return jnp.zeros((), bool)
    xp: Any = np if is_concrete(inputs, outputs) else jnp  # on the host no shape needs a program
    noise = [_noise(leaf.shape, dtype, xp) for leaf in inputs]
    tiny = 2.0**LEVELS * max(float(jnp.finfo(leaf.dtype).tiny) for leaf in outputs)
    first, found = None, []
    # One after another by the same program: side by side in one product they would round differently.
    for scale in _scales(len(inputs[0])):
        moved = push(xp.concatenate([xp.ravel(_times(scale, leaf, dtype)) for leaf in noise]))
        rows = _times(1 / scale, _rows(xp.asarray(moved), outputs, xp), moved.dtype)
        first = rows if first is None else first
        with np.errstate(invalid="ignore"):  # infinity less infinity: an overflow, told by the check of the outputs
            found.append(xp.any(xp.abs(rows - first) > tiny))
    return jnp.asarray(xp.any(xp.stack(found)))


def _scales(n: int) -> Iterator[np.ndarray]:
    """Powers of two for every sample, (n,): all equal, then one set for each digit of its index."""
    yield np.full(n, 2.0 ** (-LEVELS // 2))
    for digit in range(max(math.ceil(math.log(n, LEVELS)), 1)):
        yield 2.0 ** (np.arange(n) // LEVELS**digit % LEVELS - LEVELS // 2)


def _times(scale: np.ndarray, leaf: Any, dtype: Any) -> Any:
    """Each sample's part by its power of two."""
    return leaf * scale.astype(dtype).reshape(scale.shape + (1,) * (leaf.ndim - 1))


def _rows(vector: Any, like: list[Array], xp: Any) -> Any:
    """A vector of leaves (n, ...) as one row for each sample."""
    ends = np.cumsum([leaf.size for leaf in like])[:-1].tolist()
    return xp.concatenate([part.reshape(len(like[0]), -1) for part in xp.split(vector, ends)], axis=1)


def _noise(shape: tuple[int, ...], dtype: Any, xp: Any) -> Any:
    """Irregular numbers between -1 and 1."""
    count = xp.arange(math.prod(shape), dtype=np.float32)
    if xp is jnp:  # or the compiler would compute the noise itself, slowly
        count = jax.lax.optimization_barrier(count)
    return xp.sin(1 + 78.233 * count).reshape(shape).astype(dtype)
