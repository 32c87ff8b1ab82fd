"""Traces, diagonals and Frobenius norms from products alone, with standard errors."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from localhessian._arguments import expect_choice, expect_key
from localhessian._types import Array, Float, Key
from localhessian.linalg.operators import HIGHEST, LinearMap, SymmetricOperator, check_operator, gram
from localhessian.linalg.stochastic._moments import exact_moment
from localhessian.linalg.stochastic._probes import (
    TraceEstimate,
    check_probes,
    each_probe,
    eps_of,
    factor_of,
    itself,
    multiplied,
    on_sphere,
    random_signs,
    result,
    row_of,
    size_of,
    spread,
    unit_vector,
)

ROUNDING = 4
"""Error in units of eps and the size of what was summed, below which no estimate goes (heuristic: tests see 1)."""


def trace(
    operator: LinearMap | SymmetricOperator,
    /,
    *,
    method: Literal["hutchinson", "hutch++", "xtrace", "structured"] = "hutchinson",
    key: Key | None = None,
    probes: int = 32,
) -> TraceEstimate:
    r"""The trace of a symmetric operator, or of A^T A of a linear map A.

    $\mathrm{tr} H = E\, v^T H v = E\, \|R v\|^2$ for random signs v

    - `"hutchinson"` averages that: the error falls as 1/sqrt(probes), whatever the spectrum, and a factor saves half of
      each product.
    - `"xtrace"` and `"hutch++"` spend products on the large eigenvalues and estimate the rest: the error falls as
      1/probes at least, and faster where eigenvalues decay. `"xtrace"` uses every vector for both, leaves each out in
      turn, and needs fewer products for the same error; its standard error comes from that, and is too small
      (by 0.6 in the test of a steep spectrum) where eigenvalues fall steeply.
    - `"structured"` is exact where `lh.Structured` finds something: Gram matrices, and no decomposition.

    Args:
        operator: Any operator; batched operators give one estimate each.
        method: As above.
        key: Of the random vectors; default `jax.random.key(0)`.
        probes: How many products; where the operator (or the smaller side of its factor) is no larger than that, unit
            vectors give the exact trace.

    Returns:
        The estimate with its standard error. Works under `jax.jit` and `jax.vmap`.

    Raises:
        SpectrumError: Products are not finite, or none of a symmetric matrix (under `jax.jit` only `status` tells).
        ValueError: `probes` is too small for an error bar, `Structured` declines, or `method` is unknown.

    Cost: `probes` products with H (Hutchinson: with the factor alone where there is one); the other two keep
    `probes` vectors and orthogonalize them.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> print(lh.trace(lh.symmetric_operator(lambda v: jnp.array([3.0, 1.0]) * v, 2)).value)
        4.0

    Source: M. F. Hutchinson, Commun. Stat. Simul. Comput. 18 (1989) 1059; R. A. Meyer, C. Musco, C. Musco and D. P.
    Woodruff, SOSA (2021) 142; E. N. Epperly, J. A. Tropp and R. J. Webber, SIAM J. Matrix Anal. Appl. 45 (2024) 1.
    """
    check_operator(operator)
    expect_key(key)
    least = {"hutchinson": 2, "hutch++": 6, "xtrace": 4, "structured": 0}
    expect_choice("method", method, tuple(least))
    if method == "structured":
        return exact_moment(operator, lambda first, _: first)
    check_probes(probes, least[method], "" if method == "hutchinson" else f" by {method!r}")
    key = jax.random.key(0) if key is None else key
    factor = factor_of(operator)
    if factor is not None and min(factor.in_size, factor.out_size) <= probes:
        narrow = factor if factor.in_size <= factor.out_size else factor.T
        squares = each_probe(Partial(multiplied, narrow.prepare()), Partial(unit_vector, key), narrow.in_size, narrow)
        return result(jnp.sum(squares**2, axis=(0, 2)), None, narrow.in_size, True, operator)
    if method != "hutchinson" and not size_of(operator) <= probes:
        symmetric = gram(operator) if isinstance(operator, LinearMap) else operator
        return (_hutch if method == "hutch++" else _xtrace)(symmetric, key, probes)
    exact = size_of(operator) <= probes
    count = size_of(operator) if exact else probes
    form = Partial(_quadratic_form, (operator if factor is None else factor).prepare())
    forms = each_probe(form, Partial(unit_vector if exact else random_signs, key), count, operator)
    if exact:
        return result(jnp.sum(forms, axis=0), None, count, True, operator)
    return result(jnp.mean(forms, axis=0), spread(forms), count, False, operator)


def diagonal(operator: LinearMap | SymmetricOperator, /, *, key: Key | None = None, probes: int = 32) -> TraceEstimate:
    r"""The diagonal of a symmetric operator, or of A^T A of a linear map A, by products alone.

    $\mathrm{diag} H = E\, v \odot H v$ for random signs v; the variance of entry i is the sum of the squares of the
    other entries of its row, over the number of probes.

    Args:
        operator: Any operator; batched operators give one diagonal each.
        key: Of the random signs; default `jax.random.key(0)`.
        probes: How many products; where the operator (or its factor's output) is no larger, unit vectors give the exact
            diagonal.

    Returns:
        Values and standard errors, `(*s, d)`. Works under `jax.jit` and `jax.vmap`.

    Raises:
        SpectrumError: Products are not finite, or none of a symmetric matrix (under `jax.jit` only `status` tells).
        ValueError: `probes` is less than 2.

    Cost: `probes` products with H; memory 3 d numbers on the host, `probes * d` in a compiled program.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> print(lh.diagonal(lh.symmetric_operator(lambda v: jnp.array([3.0, 1.0]) * v, 2)).value)
        [3. 1.]

    Source: C. Bekas, E. Kokiopoulou and Y. Saad, Appl. Numer. Math. 57 (2007) 1214.
    """
    check_operator(operator)
    expect_key(key)
    check_probes(probes, 2)
    key = jax.random.key(0) if key is None else key
    factor = factor_of(operator)
    if factor is not None and factor.out_size <= probes:
        lines = each_probe(
            Partial(multiplied, factor.T.prepare()), Partial(unit_vector, key), factor.out_size, factor.T
        )
        return result(jnp.sum(lines**2, axis=0), None, factor.out_size, True, operator)
    symmetric = gram(operator) if isinstance(operator, LinearMap) else operator
    exact = symmetric.size <= probes
    count = symmetric.size if exact else probes
    vectors = Partial(unit_vector if exact else random_signs, key)
    entries = each_probe(Partial(_entries, symmetric.prepare()), vectors, count, symmetric)
    if exact:
        return result(jnp.sum(entries, axis=0), None, count, True, operator)
    return result(jnp.mean(entries, axis=0), spread(entries), count, False, operator)


def _hutch(operator: SymmetricOperator, key: Key, probes: int) -> TraceEstimate:
    """Hutch++: a third of the products each for a range, the trace on it, and the rest."""
    third, prepared = probes // 3, operator.prepare()
    sketch_key, rest_key = jax.random.split(key)
    times = Partial(multiplied, prepared)
    basis = _orthonormal(each_probe(times, Partial(random_signs, sketch_key), third, operator))[0]
    images = each_probe(times, Partial(row_of, basis), third, operator)
    captured = jnp.sum(basis * images, axis=(0, 2))
    outside = Partial(_outside, prepared, basis)
    forms = each_probe(outside, Partial(random_signs, rest_key), third, operator)
    floor = ROUNDING * eps_of(operator) * jnp.sum(jnp.abs(jnp.sum(basis * images, axis=2)), axis=0)
    return result(captured + jnp.mean(forms, 0), jnp.maximum(spread(forms), floor), 3 * third, False, operator)


def _xtrace(operator: SymmetricOperator, key: Key, probes: int) -> TraceEstimate:
    """XTrace: every vector is left out of the basis in turn, and tests what the others leave."""
    count, prepared = probes // 2, operator.prepare()
    times = Partial(multiplied, prepared)
    omega = each_probe(Partial(itself), Partial(on_sphere, key), count, operator)
    moved = each_probe(times, Partial(row_of, omega), count, operator)
    basis, upper, full = _orthonormal(moved)
    images = each_probe(times, Partial(row_of, basis), count, operator)
    small = jnp.einsum("psd,qsd->spq", basis, images, precision=HIGHEST)
    w = jnp.einsum("psd,qsd->spq", basis, omega, precision=HIGHEST)
    t = jnp.einsum("psd,qsd->spq", images, omega, precision=HIGHEST)
    estimates = jax.vmap(_leave_one_out, in_axes=(0, 0, 0, 0, None))(upper, small, w, t, operator.size)
    whole = jnp.einsum("spp->s", small)
    # A space that holds the whole range is exact: what is left out of it is rounding.
    value = jnp.where(full, jnp.mean(estimates, 1), whole)
    error = jnp.where(full, jnp.std(estimates, axis=1, ddof=1) / count**0.5, 0)
    floor = ROUNDING * eps_of(operator) * jnp.sum(jnp.abs(jnp.einsum("spp->sp", small)), axis=1)
    return result(value, jnp.maximum(error, floor), 2 * count, False, operator)


def _leave_one_out(upper: Array, small: Array, w: Array, t: Array, size: int) -> Array:
    """The estimates of one operator that leave each vector out of the basis, `(count,)`."""
    count = len(upper)
    inverse = jax.scipy.linalg.solve_triangular(upper, jnp.eye(count, dtype=upper.dtype), trans=1)
    s = inverse / jnp.linalg.norm(inverse, axis=0, keepdims=True)
    along = jnp.sum(w * s, axis=0)
    x = w - s * along[None, :]
    inside = jnp.trace(small) - jnp.sum(s * jnp.matmul(small, s, precision=HIGHEST), axis=0)
    rest = jnp.sum(x * jnp.matmul(small, x, precision=HIGHEST), axis=0) - jnp.sum(t * x, axis=0)
    rest = rest + along * jnp.sum(s * upper, axis=0)
    # What is outside of the basis is rescaled to the length that a random vector of that space has.
    scale = (size - count + 1) / jnp.maximum(size - jnp.sum(x**2, axis=0), jnp.finfo(x.dtype).tiny)
    return inside + scale * rest


def _orthonormal(vectors: Float[Array, "p s d"]) -> tuple[Array, Array, Array]:
    """Orthonormal rows of the same span, the triangle `(s, p, p)`, and whether all rows are independent, (s,)."""
    q, upper = jnp.linalg.qr(jnp.moveaxis(vectors, 0, -1))
    lengths = jnp.abs(jnp.diagonal(upper, axis1=1, axis2=2))
    eps = float(jnp.finfo(vectors.dtype).eps)
    independent = jnp.min(lengths, axis=1) > 10 * eps * jnp.max(lengths, axis=1)
    upper = jnp.where(independent[:, None, None], upper, jnp.eye(len(vectors), dtype=upper.dtype)[None])
    return jnp.moveaxis(q, -1, 0), upper, independent


def _quadratic_form(operator: LinearMap | SymmetricOperator, v: Float[Array, "s d"]) -> Float[Array, " s"]:
    moved = multiplied(operator, v)
    return jnp.sum((moved if isinstance(operator, LinearMap) else v) * moved, axis=-1)


def _entries(operator: SymmetricOperator, v: Float[Array, "s d"]) -> Float[Array, "s d"]:
    return v * multiplied(operator, v)


def _outside(operator: SymmetricOperator, basis: Float[Array, "p s d"], v: Float[Array, "s d"]) -> Float[Array, " s"]:
    """The quadratic form of what is left of v outside of a basis."""
    for _ in range(2):
        v = v - jnp.einsum(
            "ps,psd->sd", jnp.einsum("psd,sd->ps", basis, v, precision=HIGHEST), basis, precision=HIGHEST
        )
    return _quadratic_form(operator, v)
