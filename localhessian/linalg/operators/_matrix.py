"""Explicit matrices."""

import jax.numpy as jnp

from localhessian._tree import pytree
from localhessian._types import Array, Float
from localhessian.linalg.operators._operators import HIGHEST, LinearMap


@pytree
class Matrix(LinearMap):
    """A matrix, or a batch of them; products in full precision."""

    matrix: Float[Array, "*s m d"]

    def product(self, v: Float[Array, "*s d"], /) -> Float[Array, "*s m"]:
        """A v."""
        return jnp.einsum("...md,...d->...m", self.matrix, v, precision=HIGHEST)

    def transpose_product(self, u: Float[Array, "*s m"], /) -> Float[Array, "*s d"]:
        """A^T u."""
        return jnp.einsum("...md,...m->...d", self.matrix, u, precision=HIGHEST)


def matrix_map(matrix: Float[Array, "*s m d"], /) -> Matrix:
    """The linear map of an explicit matrix, or of a batch of them."""
    *lead, m, d = matrix.shape
    return Matrix(matrix, size=d, out_size=m, dtype=matrix.dtype, batch=lead[0] if lead else None)
