"""Maps of one kind and one shape as a batch: what multiplies them all is one program."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from localhessian._tree import is_concrete, pytree, static
from localhessian._types import Array, Float
from localhessian.linalg.operators._operators import LinearMap


@pytree
class SideBySide(LinearMap):
    """The maps of `count` batches, one batch after the other."""

    of: LinearMap
    """One of them, whose arrays have an axis of all in front."""
    count: int = static()

    def product(self, v: Float[Array, "s d"], /) -> Float[Array, "s m"]:
        """A v of each."""
        return self._each(lambda one, v: one.product(v), v)

    def transpose_product(self, u: Float[Array, "s m"], /) -> Float[Array, "s d"]:
        """A^T u of each."""
        return self._each(lambda one, u: one.transpose_product(u), u)

    def prepare(self) -> LinearMap:
        """With the set-up of all done."""
        return dataclasses.replace(self, of=jax.vmap(lambda one: one.prepare())(self.of))

    def _each(self, multiply: Callable[[LinearMap, Array], Array], vectors: Array) -> Array:
        lead = () if self.of.batch is None else (self.of.batch,)
        found = jax.vmap(multiply)(self.of, vectors.reshape(self.count, *lead, vectors.shape[-1]))
        return found.reshape(len(vectors), -1)


def side_by_side(maps: Sequence[LinearMap]) -> LinearMap:
    """Maps of one kind (`are_alike`) as one batch, in their order; under tracing."""
    of, count = jax.tree.map(lambda *each: jnp.stack(each), *maps), len(maps)
    return SideBySide(of, count, **of.form | {"batch": count * (of.batch or 1)})


def are_alike(one: LinearMap, other: LinearMap) -> bool:
    """Whether two maps, without labels, are multiplied by the same program, all of whose numbers are traced."""
    kinds: list[Any] = [jax.tree.structure(each) for each in (one, other)]
    if kinds[0] != kinds[1]:
        return False
    leaves = (jax.tree.leaves(one), jax.tree.leaves(other))
    apart = not any(map(is_concrete, (*leaves[0], *leaves[1])))
    return apart and all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(*leaves, strict=True))
