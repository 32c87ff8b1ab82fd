"""Maps that are multiplied by the same program: what is done with each of them is compiled once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from localhessian._tree import is_concrete
from localhessian.linalg.operators._convolution import in_loop
from localhessian.linalg.operators._operators import LinearMap


def are_alike(one: LinearMap, other: LinearMap) -> bool:
    """Whether two maps, without labels, are multiplied by the same program, all of whose numbers are traced."""
    kinds: list[Any] = [jax.tree.structure(each) for each in (one, other)]
    if kinds[0] != kinds[1]:
        return False
    leaves = (jax.tree.leaves(one), jax.tree.leaves(other))
    apart = not any(map(is_concrete, (*leaves[0], *leaves[1])))
    return apart and all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(*leaves, strict=True))


def in_turn(function: Callable[[LinearMap], Any], maps: Sequence[LinearMap]) -> list[Any]:
    """function(map) of each of some maps that are alike, by one program under tracing.

    One after the other: iterations end when their own problems are done, and their bases stay in the CPU's cache.
    """
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *maps)
    every = jax.lax.map(in_loop(function), stacked)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], every) for i in range(len(maps))]
