"""A batch of operators of which some are asked for more than once."""

import dataclasses
from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._tree import is_concrete
from localhessian._types import Array
from localhessian.linalg.operators._operators import LinearMap, SymmetricOperator


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
    spread = _Spread(int(rounds.max()) + 1, operator.batch or 1)
    return _repeated(spread, jnp.asarray(places), jnp.asarray(rounds), operator)


@dataclasses.dataclass(frozen=True)
class _Spread:
    """Products of a batch, with each of its operators once in a round."""

    rounds: int
    batch: int

    def __call__(self, product: Partial, places: Array, rounds: Array, vectors: Array) -> Array:
        laid_out = jnp.zeros((self.rounds, self.batch, vectors.shape[-1]), vectors.dtype)
        return jax.vmap(product)(laid_out.at[rounds, places].set(vectors))[rounds, places]


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """() -> what `repeat` makes of a prepared operator or map."""

    repeat: Callable
    spread: _Spread

    def __call__(self, setup: Partial, places: Array, rounds: Array):
        return self.repeat(self.spread, places, rounds, setup())


def _repeated(spread: _Spread, places: Array, rounds: Array, operator: SymmetricOperator) -> SymmetricOperator:
    setup = None if operator.setup is None else Partial(_Prepared(_repeated, spread), operator.setup, places, rounds)
    return dataclasses.replace(
        operator,
        product=Partial(spread, operator.product, places, rounds),
        factor=None if operator.factor is None else _repeated_map(spread, places, rounds, operator.factor),
        setup=setup,
        batch=len(places),
    )


def _repeated_map(spread: _Spread, places: Array, rounds: Array, factor: LinearMap) -> LinearMap:
    setup = None if factor.setup is None else Partial(_Prepared(_repeated_map, spread), factor.setup, places, rounds)
    return dataclasses.replace(
        factor,
        forward=Partial(spread, factor.forward, places, rounds),
        backward=Partial(spread, factor.backward, places, rounds),
        setup=setup,
        batch=len(places),
    )
