"""The scalars of all blocks of a network, estimated in a program that is small and stands in a step of training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._programs import compiled
from localhessian._tree import size
from localhessian._types import Activations, Array, Context, Params, Scalar
from localhessian.curvature import estimated_scalars, random_words
from localhessian.linalg import quickly
from localhessian.network import SIDES, Chain, Leaves, Place, Wrt, applied


@quickly(static_argnums=(0, 1, 2, 3, 4))
def refreshed(chain, loss, scalar, probes, dtype, due, before, *arguments) -> tuple[Array, Array]:
    """New scalars (m_W, m_z) of every block where they are due, else those of before.

    Cost: a forward pass, and what `estimated_scalars` takes of both sides of each block; nothing at steps between.
    """
    estimate = functools.partial(_scalars, chain, loss, scalar, probes, dtype, *arguments)
    # The CPU runs a vjp of a convolution slowly in a branch: `mean` and `range_mean` need none, `max` has it rewritten.
    return jax.lax.cond(due, estimate, lambda: before)


def _scalars(chain, loss, scalar, probes, dtype, params, x, y, context, key) -> tuple[Array, Array]:
    """m_W and m_z of every block; 1 for a side that does not exist."""
    asked = jax.eval_shape(functools.partial(_variables, chain), params, x, context)
    ends = np.cumsum([size(of_block) for of_block in asked]).tolist()
    words = random_words(key, ends[-1], probes)
    found: dict[tuple[int, Wrt], Array] = {}
    z = x
    for b, (block, of_block) in enumerate(zip(chain.blocks, asked, strict=True)):
        place = Place(params.get(block.name, ()), z, context)
        if not of_block:
            z = applied(block, place)
            continue
        own = words[:, ends[b] - size(of_block) : ends[b]]
        last, target = (loss, y) if b == len(chain) - 1 else (None, None)
        sides = tuple(wrt for wrt in SIDES if wrt in of_block)
        values, z = _of_block(block.anonymous, sides, last, scalar, probes, place, target, own)
        found |= {(b, wrt): value.astype(dtype) for wrt, value in zip(sides, values, strict=True)}
    one = jnp.ones((), dtype)
    weights, inputs = (jnp.stack([found.get((b, wrt), one) for b in range(len(chain))]) for wrt in SIDES)
    return weights, inputs


@compiled(static_argnums=(0, 1, 2, 3, 4))
def _of_block(block, sides, loss, scalar, probes, place, y, words) -> tuple[list[Scalar], Activations]:
    """`estimated_scalars` of these sides; traced once for equal blocks."""
    return estimated_scalars([SIDES[wrt](block) for wrt in sides], loss, scalar, place, y, words, probes)


def _variables(chain: Chain, params: dict[str, Params], x: Activations, context: Context) -> list[dict[Wrt, Leaves]]:
    """Of each block those of the sides that a scalar is needed of: the input of the first is none of them."""
    places = [
        Place(params.get(block.name, ()), z, context)
        for block, z in zip(chain.blocks, chain.forward(params, x, context), strict=False)
    ]
    every = [
        {wrt: kind(block).variables(place)[0] for wrt, kind in SIDES.items()}
        for block, place in zip(chain.blocks, places, strict=True)
    ]
    every[0]["input"] = []
    return [{wrt: leaves for wrt, leaves in of_block.items() if leaves} for of_block in every]
