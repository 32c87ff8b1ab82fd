"""Singular values inside compiled programs: on the CPU by Gram matrices in float64, also where JAX has it disabled."""

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._programs import one_by_one
from localhessian._types import Array

HALVED = 96
"""Rows from which both triangles of a Gram matrix take longer than one and its assembly (measured: a third less)."""


@jax.custom_jvp
def singular_values(*factors: Array) -> Array:
    """In descending order, as many as the smaller side has; NaN of a matrix that is not finite.

    Of matrices (*, m, p); or of (*, m, p_1) and (*, m, p_2), of whose rows the Kronecker products are meant. From
    float32 numbers on the CPU with all their digits, as outside of programs; on devices without float64 to eps times
    the largest. Derivatives are those of the singular value decomposition.
    """
    if factors[0].dtype == jnp.float64:
        return _by_decomposition(*factors)
    return cast(Array, jax.lax.platform_dependent(*factors, cpu=_by_gram, default=_by_decomposition))


@singular_values.defjvp
def _derivative(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> Any:
    return jax.jvp(_by_decomposition, primals, tangents)


def _by_decomposition(*factors: Array) -> Array:
    return cast(Array, _alone(_rows(*factors)))


def _finite(decompose: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same of matrices (*, m, n), NaN where one is not finite, which LAPACK never meets."""

    def run(matrices: Array) -> Array:
        finite = jnp.all(jnp.isfinite(matrices), axis=(-2, -1), keepdims=True)
        return jnp.where(finite[..., 0], decompose(jnp.where(finite, matrices, 0)), jnp.nan)

    return run


_singular_values = _finite(lambda matrices: jnp.linalg.svd(matrices, compute_uv=False))
_alone = one_by_one(_singular_values)


def _rows(*factors: Array) -> Array:
    if len(factors) == 1:
        return factors[0]
    left, right = factors
    return (left[..., :, None] * right[..., None, :]).reshape(*left.shape[:-1], -1)


@jax.custom_batching.custom_vmap
def _by_gram(*factors: Array) -> Array:
    rows, columns = factors[0].shape[-2], math.prod(factor.shape[-1] for factor in factors)
    with jax.enable_x64(True):
        if len(factors) > 1 and rows <= columns:
            squares = _of_gram(functools.reduce(jnp.multiply, map(_gram, factors)))
        else:
            matrix = factors[0] if len(factors) == 1 else _rows(*(factor.astype(jnp.float64) for factor in factors))
            squares = _of_rows(matrix if rows <= columns else jnp.swapaxes(matrix, -1, -2))
        return jnp.sqrt(jnp.maximum(squares, 0)).astype(factors[0].dtype)


def _gram(rows: Array) -> Array:
    """M M^T of matrices (*, m, p); what stands beside the diagonal is computed on one side of it."""
    multiply = functools.partial(jnp.einsum, "...ik,...jk->...ij")
    rows = rows.astype(jnp.float64)
    half = rows.shape[-2] // 2
    if rows.shape[-2] <= HALVED:
        return multiply(rows, rows)
    upper, lower = rows[..., :half, :], rows[..., half:, :]
    beside = multiply(lower, upper)
    blocks = [[_gram(upper), jnp.swapaxes(beside, -1, -2)], [beside, _gram(lower)]]
    return jnp.concatenate([jnp.concatenate(row, axis=-1) for row in blocks], axis=-2)


@_by_gram.def_vmap
def _batched(size: int, is_batched: list[bool], *factors: Array) -> tuple[Array, bool]:
    """Not by JAX's own rules, which are applied where float64 is disabled again."""
    every = [
        factor if batched else jnp.broadcast_to(factor, (size, *factor.shape))
        for factor, batched in zip(factors, is_batched, strict=True)
    ]
    return _by_gram(*every), True


def _eigenvalues(gram: Array) -> Array:
    """Descending; as singular values, which they are of such a matrix, JAX has them without vectors."""
    return _finite(_by_lapack)(gram) if _has_eigenvalues_alone() else _singular_values(gram)


def _by_lapack(gram: Array) -> Array:
    """By the routine behind `jnp.linalg.eigvalsh`, which computes the eigenvectors too."""
    *lead, n, _ = gram.shape
    shapes = [jax.ShapeDtypeStruct(shape, gram.dtype) for shape in (gram.shape, (*lead, n))]
    call = jax.ffi.ffi_call(
        "lapack_dsyevd_ffi", (*shapes, jax.ShapeDtypeStruct(lead, np.int32)), input_output_aliases={0: 0}
    )
    _, values, failed = call(gram, mode=np.uint8(ord("N")), uplo=np.uint8(ord("L")))
    return jnp.where(failed[..., None] == 0, values, jnp.nan)[..., ::-1]


_of_gram = one_by_one(_eigenvalues)
_of_rows = one_by_one(lambda rows: _eigenvalues(_gram(rows)))


@functools.cache
def _has_eigenvalues_alone() -> bool:
    """Whether this jaxlib has the routine by that name. Two tiny programs."""
    gram = np.array([[2.0, 1.0], [1.0, 2.0]])
    try:
        with jax.ensure_compile_time_eval(), jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            jnp.linalg.eigvalsh(gram)  # loads LAPACK
            return bool(np.allclose(jax.jit(_by_lapack)(gram), [3, 1]))
    except (RuntimeError, TypeError, ValueError):  # a routine that is not there, or no CPU beside the device
        return False
