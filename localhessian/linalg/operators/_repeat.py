"""A batch of operators of which some are asked for more than once."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._tree import is_concrete, pytree, static, to_device
from localhessian._types import Array
from localhessian.linalg.operators._operators import LinearMap, Operator, SymmetricOperator


@pytree
class Places:
    """Which operators of a batch are meant; each is multiplied once in a round."""

    at: Array
    round: Array
    rounds: int = static()

    def products(self, of: Operator, vectors: Array) -> Array:
        """One product for each place, of the vectors that stand there."""
        laid_out = jnp.zeros((self.rounds, of.batch or 1, vectors.shape[-1]), vectors.dtype)
        return jax.vmap(of.product)(laid_out.at[self.round, self.at].set(vectors))[self.round, self.at]


@pytree
class Repeated(SymmetricOperator):
    """Some operators of a batch, in any order."""

    of: SymmetricOperator
    places: Places

    @property
    def factor(self) -> LinearMap | None:
        """Of the same."""
        of = self.of.factor
        if of is None:
            return None
        return RepeatedMap(of, self.places, **of.form | {"batch": self.batch})

    def product(self, v: Array, /) -> Array:
        """H v of each."""
        return self.places.products(self.of.prepare(), v)

    def prepare(self) -> SymmetricOperator:
        """With the batch's set-up done."""
        return dataclasses.replace(self, of=self.of.prepare(), label="")


@pytree
class RepeatedMap(LinearMap):
    """Some maps of a batch, in any order."""

    of: LinearMap
    places: Places

    def product(self, v: Array, /) -> Array:
        """A v of each."""
        return self.places.products(self.of.prepare(), v)

    def transpose_product(self, u: Array, /) -> Array:
        """A^T u of each."""
        return self.places.products(self.of.prepare().T, u)

    def prepare(self) -> LinearMap:
        """With the batch's set-up done."""
        return dataclasses.replace(self, of=self.of.prepare(), label="")


def repeated(operator: SymmetricOperator, places: Array, /) -> SymmetricOperator:
    """The operators of a batch at `places`, in that order.

    Cost: of a product as many products of the batch as the most frequent place occurs times; where places are known
    only at run time, as there are places.
    """
    rounds = np.arange(len(places))
    if is_concrete(places):
        seen: Counter[int] = Counter()
        for i, place in enumerate(np.asarray(places).tolist()):
            rounds[i], seen[place] = seen[place], seen[place] + 1
    of_each = Places(jnp.asarray(places), to_device(rounds), int(rounds.max()) + 1)
    return Repeated(operator, of_each, **operator.form | {"batch": len(places)})
