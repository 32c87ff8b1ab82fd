"""Sums over data that do not fit in memory: parts that are made one after the other, anew in every product."""

from collections.abc import Callable, Iterator
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._blas import threads_that_pay
from localhessian._tree import is_concrete, pytree, static
from localhessian._types import AnyArray, Array, Float
from localhessian.linalg.operators._operators import Operator, SymmetricOperator, check_vector

Parts = Callable[[], Iterator[tuple[float, SymmetricOperator]]]
"""Each call goes through all (weight, operator) again."""
Rows = Callable[[Operator], np.ndarray]
"""The matrix of a single operator: R of a linear map."""


@pytree
class Streamed(SymmetricOperator):
    """w_1 H_1 + w_2 H_2 + .., of which one part is in memory at a time; multiplied on the host, in no program."""

    parts: Parts = static()
    rows: int = static()
    """Of all factors on each other; of parts without one, of all matrices."""
    semidefinite: bool = static(default=False)
    """Whether each part is known to be."""
    in_programs = False

    def product(self, v: Float[Array, " d"], /) -> Float[Array, " d"]:
        """H v, part after part; each by its own program."""
        if not is_concrete(v):
            raise TypeError(
                f"{self.label or 'the operator'} is a sum over a stream of batches, which no compiled program holds: "
                "use it outside `jax.jit` by `lh.spectrum`, `lh.spectral_density` or `.mv`, or a single batch."
            )
        total = None
        for weight, part in self.parts():
            image = weight * part.mv(v)
            # Or programs of later batches are queued, and their data held, before the first is done.
            total = jax.block_until_ready(image if total is None else total + image)
        if total is None:
            raise ValueError(f"{self.label or 'the operator'}: the stream gave no batch.")
        return cast(Array, total)

    def mv(self, v: Float[AnyArray, " d"], /) -> Float[Array, " d"]:
        """H v."""
        check_vector("v", v, self.size, self.batch)
        return self.product(jnp.asarray(v))

    def to_dense(self) -> Float[Array, "d d"]:
        """The matrix, in one pass over the parts."""
        terms = (weight * part.to_dense() for weight, part in self.parts())
        return sum(terms, start=next(terms))

    def triangle(self, rows: Rows) -> np.ndarray | None:
        """R in float64 with H = R^T R, of at most `size` rows; None where a part has no factor.

        The factors sqrt(w_i) R_i on each other, reduced by orthogonal transformations as they come: nothing is squared.

        Cost: one pass, O(size^2) numbers, and O(m size^2) operations for m rows of all factors.
        """
        held = np.zeros((0, self.size))
        for weight, part in self.parts():
            if part.factor is None:
                return None
            held = np.concatenate([held, weight**0.5 * np.asarray(rows(part.factor), np.float64)])
            if len(held) >= 2 * self.size:
                held = triangle_of(held)
        return triangle_of(held) if len(held) > self.size else held

    def matrix(self, rows: Rows) -> np.ndarray:
        """H, summed in float64 in one pass."""
        total = np.zeros((self.size, self.size))
        for weight, part in self.parts():
            total += weight * np.asarray(rows(part), np.float64)
        return total


def triangle_of(rows: np.ndarray) -> np.ndarray:
    """The upper triangle with the same R^T R, of as many rows as R has at most."""
    with threads_that_pay(rows.size):
        return np.asarray(np.linalg.qr(rows, mode="r"))
