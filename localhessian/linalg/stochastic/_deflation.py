"""Hutch++ and XTrace: the large eigenvalues from a basis of their space, the rest by random vectors."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from localhessian._programs import compiled_if_eager, one_by_one, qr
from localhessian._types import Array, Float, Key
from localhessian.linalg.operators import HIGHEST, Operator, SymmetricOperator, eps_of
from localhessian.linalg.stochastic._hutchinson import quadratic_form
from localhessian.linalg.stochastic._probes import (
    TraceEstimate,
    check_probes,
    each_probe,
    itself,
    multiplied,
    on_sphere,
    random_signs,
    result,
    row_of,
    spread,
)

ROUNDING = 4
"""Error in units of eps and the size of what was summed, below which no estimate goes (heuristic: tests see 1)."""


@dataclasses.dataclass(frozen=True)
class HutchPlusPlus:
    """A trace by thirds: the range of H, the trace on it, and what is left by random signs.

    The error falls as 1/probes at least, and faster where eigenvalues decay. `XTrace` needs fewer products for the
    same error.

    Cost: `probes` products with H (what three does not divide is left out); `probes * d` numbers, and O(probes^2 d)
    operations to orthogonalize a third of them.

    Args:
        probes: How many products; an error bar needs 6.

    Source: R. A. Meyer, C. Musco, C. Musco and D. P. Woodruff, SOSA (2021) 142.
    """

    probes: int = 32

    def __post_init__(self) -> None:
        """Refuse what is no number of products, and too few for an error bar."""
        check_probes(self.probes, 6, " by Hutch++")

    def trace(self, operator: Operator, key: Key) -> TraceEstimate:
        """tr(H) of a symmetric operator, tr(A^T A) of a linear map A; what `lh.trace` calls."""
        third, prepared = self.probes // 3, operator.symmetric.prepare()
        sketch_key, rest_key = jax.random.split(key)
        times = Partial(multiplied, prepared)
        basis = _orthonormal(each_probe(times, Partial(random_signs, sketch_key), third, operator))[0]
        images = each_probe(times, Partial(row_of, basis), third, operator)
        outside = Partial(_outside, prepared, basis)
        forms = each_probe(outside, Partial(random_signs, rest_key), third, operator)
        return result(*_both_parts(basis, images, forms, eps_of(operator.dtype)), 3 * third, False, operator)


@dataclasses.dataclass(frozen=True)
class XTrace:
    """A trace by a basis that leaves every vector out in turn, and tests with it what the others leave.

    The error falls as 1/probes at least, and faster where eigenvalues decay. Every vector serves both for the basis and
    for the rest; the standard error comes from that, and is too small (by 0.6 in the test of a steep spectrum) where
    eigenvalues fall steeply.

    Cost: `probes` products with H (of an odd number one less); `2 * probes * d` numbers, and O(probes^2 d) operations
    to orthogonalize a half of them.

    Args:
        probes: How many products; an error bar needs 4.

    Source: E. N. Epperly, J. A. Tropp and R. J. Webber, SIAM J. Matrix Anal. Appl. 45 (2024) 1.
    """

    probes: int = 32

    def __post_init__(self) -> None:
        """Refuse what is no number of products, and too few for an error bar."""
        check_probes(self.probes, 4, " by XTrace")

    def trace(self, operator: Operator, key: Key) -> TraceEstimate:
        """tr(H) of a symmetric operator, tr(A^T A) of a linear map A; what `lh.trace` calls."""
        count, prepared = self.probes // 2, operator.symmetric.prepare()
        times = Partial(multiplied, prepared)
        omega = each_probe(Partial(itself), Partial(on_sphere, key), count, operator)
        moved = each_probe(times, Partial(row_of, omega), count, operator)
        basis, upper, full = _orthonormal(moved)
        images = each_probe(times, Partial(row_of, basis), count, operator)
        told = _each_left_out(basis, upper, full, images, omega, eps_of(operator.dtype))
        return result(*told, 2 * count, False, operator)


@compiled_if_eager(static_argnums=3)
def _both_parts(basis: Array, images: Array, forms: Array, eps: float) -> tuple[Array, Array]:
    """The trace within a basis and what random signs tell of the rest, and its error, (s,) each."""
    captured = jnp.sum(basis * images, axis=2)
    floor = ROUNDING * eps * jnp.sum(jnp.abs(captured), axis=0)
    return jnp.sum(captured, axis=0) + jnp.mean(forms, 0), jnp.maximum(spread(forms), floor)


@compiled_if_eager(static_argnums=5)
def _each_left_out(
    basis: Array, upper: Array, full: Array, images: Array, omega: Array, eps: float
) -> tuple[Array, Array]:
    """The mean of the estimates that leave each vector out, and its error, (s,) each."""
    small = jnp.einsum("psd,qsd->spq", basis, images, precision=HIGHEST)
    w = jnp.einsum("psd,qsd->spq", basis, omega, precision=HIGHEST)
    t = jnp.einsum("psd,qsd->spq", images, omega, precision=HIGHEST)
    count, _, size = basis.shape
    estimates = jax.vmap(_leave_one_out, in_axes=(0, 0, 0, 0, None))(upper, small, w, t, size)
    whole = jnp.einsum("spp->s", small)
    # A space that holds the whole range is exact: what is left out of it is rounding.
    value = jnp.where(full, jnp.mean(estimates, 1), whole)
    error = jnp.where(full, jnp.std(estimates, axis=1, ddof=1) / count**0.5, 0)
    floor = ROUNDING * eps * jnp.sum(jnp.abs(jnp.einsum("spp->sp", small)), axis=1)
    return value, jnp.maximum(error, floor)


def _leave_one_out(upper: Array, small: Array, w: Array, t: Array, size: int) -> Array:
    """The estimates of one operator that leave each vector out of the basis, `(count,)`."""
    count = len(upper)
    inverse = _inverse_transposed(upper)
    s = inverse / jnp.linalg.norm(inverse, axis=0, keepdims=True)
    along = jnp.sum(w * s, axis=0)
    x = w - s * along[None, :]
    inside = jnp.trace(small) - jnp.sum(s * jnp.matmul(small, s, precision=HIGHEST), axis=0)
    rest = jnp.sum(x * jnp.matmul(small, x, precision=HIGHEST), axis=0) - jnp.sum(t * x, axis=0)
    rest = rest + along * jnp.sum(s * upper, axis=0)
    # What is outside of the basis is rescaled to the length that a random vector of that space has.
    scale = (size - count + 1) / jnp.maximum(size - jnp.sum(x**2, axis=0), jnp.finfo(x.dtype).tiny)
    return inside + scale * rest


_inverse_transposed = one_by_one(
    lambda upper: jax.scipy.linalg.solve_triangular(upper, jnp.eye(len(upper), dtype=upper.dtype), trans=1)
)


def _orthonormal(vectors: Float[Array, "p s d"]) -> tuple[Array, Array, Array]:
    """Orthonormal rows of the same span, the triangle `(s, p, p)`, and whether all rows are independent, (s,)."""
    q, upper = qr(jnp.moveaxis(vectors, 0, -1))
    return _judged(q, upper, eps_of(vectors.dtype))


@compiled_if_eager(static_argnums=2)
def _judged(q: Float[Array, "s d p"], upper: Float[Array, "s p p"], eps: float) -> tuple[Array, Array, Array]:
    lengths = jnp.abs(jnp.diagonal(upper, axis1=1, axis2=2))
    independent = jnp.min(lengths, axis=1) > 10 * eps * jnp.max(lengths, axis=1)
    upper = jnp.where(independent[:, None, None], upper, jnp.eye(upper.shape[1], dtype=upper.dtype)[None])
    return jnp.moveaxis(q, -1, 0), upper, independent


def _outside(operator: SymmetricOperator, basis: Float[Array, "p s d"], v: Float[Array, "s d"]) -> Float[Array, " s"]:
    """The quadratic form of what is left of v outside of a basis."""
    for _ in range(2):
        v = v - jnp.einsum(
            "ps,psd->sd", jnp.einsum("psd,sd->ps", basis, v, precision=HIGHEST), basis, precision=HIGHEST
        )
    return quadratic_form(operator, v)
