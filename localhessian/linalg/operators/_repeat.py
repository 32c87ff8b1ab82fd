"""A batch of operators of which some are asked for more than once."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._tree import is_concrete, pytree, static
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
        factor = self.of.factor
        if factor is None:
            return None
        return _maps(factor, self.places, self.batch)

    def product(self, v: Array, /) -> Array:
        """H v of each."""
        return self.places.products(self.of.prepare(), v)

    def prepare(self) -> SymmetricOperator:
        """With the batch's set-up done."""
        return _operators(self.of.prepare(), self.places, self.batch)


def _operators(of: SymmetricOperator, places: Places, batch: int | None) -> Repeated:
    return Repeated(of, places, size=of.size, dtype=of.dtype, batch=batch, label=of.label)


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
        return _maps(self.of.prepare(), self.places, self.batch)


def _maps(of: LinearMap, places: Places, batch: int | None) -> RepeatedMap:
    return RepeatedMap(of, places, size=of.size, out_size=of.out_size, dtype=of.dtype, batch=batch, label=of.label)


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
    of_each = Places(jnp.asarray(places), jnp.asarray(rounds), int(rounds.max()) + 1)
    return _operators(operator, of_each, len(places))
