"""A root L of the loss Hessian, S = L L^T, for the last block.

Three kinds: that of a softmax, S = alpha (diag(p) - p p^T) with L = sqrt(alpha) (diag(sqrt p) - p sqrt(p)^T); diagonal
(any loss that is a sum over outputs: squared error, logistic); and one matrix for each sample. The first two are
accurate to rounding where an eigendecomposition of S would leave sqrt(eps).
"""

import enum
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._tree import pytree, ravel_samples, static
from localhessian._types import Array


class Kind(enum.Enum):
    """What the loss Hessian is."""

    SOFTMAX = "softmax cross-entropy"
    DIAGONAL = "diagonal"
    GENERAL = "general"


@pytree
class Root:
    """L at given outputs, acting on the floating-point leaves of z_B: a list of arrays of JAX, or all of NumPy."""

    data: list[Any]
    """SOFTMAX: p, sqrt(alpha p) and where p is largest; DIAGONAL: sqrt(s) a leaf; GENERAL: a matrix for each sample."""
    kind: Kind = static()

    def transpose_mv(self, outputs: list[Any]) -> list[Any]:
        """L^T u."""
        return self._apply(outputs, transpose=True)

    def mv(self, outputs: list[Any]) -> list[Any]:
        """L u."""
        return self._apply(outputs, transpose=False)

    def hessian(self, outputs: list[Any]) -> list[Any]:
        """S u = L L^T u."""
        return self.mv(self.transpose_mv(outputs))

    def _apply(self, outputs: list[Any], transpose: bool) -> list[Any]:
        outputs = [at_least_single(leaf) for leaf in outputs]
        if self.kind is Kind.DIAGONAL:
            return [root * leaf for root, leaf in zip(self.data, outputs, strict=True)]
        if self.kind is Kind.SOFTMAX:
            p, root, top = self.data
            u = outputs[0]
            xp = np if isinstance(u, np.ndarray) else jnp
            return [(_softmax_transposed if transpose else _softmax)(p, root, top, u, xp)]
        return multiply(self.data[0], outputs, transpose)


def _softmax_transposed(p: Any, root: Any, top: Any, u: Any, xp: Any) -> Any:
    """sqrt(alpha p) (u - <p, u>), by differences to the likeliest class: nothing cancels where p is near 1."""
    apart = u - xp.sum(xp.where(top, u, 0), axis=-1, keepdims=True)
    # Of the likeliest class that is 0; said again, because `x - sum(p * x)` is what `_programs.compiled` tells of.
    return root * (apart - xp.sum(xp.where(top, 0, p * apart), axis=-1, keepdims=True))


def _softmax(p: Any, root: Any, top: Any, u: Any, xp: Any) -> Any:
    """The transpose of that: t - p sum(t) with t = sqrt(alpha p) u; of the likeliest class what makes the sum 0."""
    t = root * u
    rest = xp.where(top, 0, t - p * xp.sum(t, axis=-1, keepdims=True))
    return xp.where(top, -xp.sum(rest, axis=-1, keepdims=True), rest)


def multiply(matrices: Array, outputs: list[Array], transpose: bool = False) -> list[Array]:
    """Each sample's outputs by its matrix."""
    rows, unravel = ravel_samples(outputs)
    product = "nij,ni->nj" if transpose else "nij,nj->ni"
    return cast(list[Array], unravel(jnp.einsum(product, matrices, rows, precision=jax.lax.Precision.HIGHEST)))


def at_least_single(leaf: Any) -> Any:
    """In float32 at least: the rounding of narrower numbers would let anything pass for anything."""
    narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
    return leaf.astype(jnp.float32) if narrow else leaf
