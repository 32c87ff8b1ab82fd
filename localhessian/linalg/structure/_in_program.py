"""Singular values inside compiled programs: on the CPU by Gram matrices in float64, also where JAX has it disabled."""

import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._programs import one_by_one
from localhessian._types import Array


@jax.custom_jvp
def singular_values(*factors: Array) -> Array:
    """In descending order, as many as the smaller side has.

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


_alone = one_by_one(lambda matrix: jnp.linalg.svd(matrix, compute_uv=False))


def _rows(*factors: Array) -> Array:
    if len(factors) == 1:
        return factors[0]
    left, right = factors
    return (left[..., :, None] * right[..., None, :]).reshape(*left.shape[:-1], -1)


@jax.custom_batching.custom_vmap
def _by_gram(*factors: Array) -> Array:
    rows, columns = factors[0].shape[-2], math.prod(factor.shape[-1] for factor in factors)
    with jax.enable_x64(True):
        wide = [factor.astype(jnp.float64) for factor in factors]
        if rows > columns:
            wide = [jnp.swapaxes(_rows(*wide), -1, -2)]
        grams = [jnp.einsum("...ik,...jk->...ij", factor, factor) for factor in wide]
        gram = functools.reduce(jnp.multiply, grams)
        # Of a positive semi-definite matrix singular values are eigenvalues, and JAX has them without vectors.
        squares = (_in_turn if _has_eigenvalues_alone() else _alone)(gram)
        return jnp.sqrt(jnp.maximum(squares, 0)).astype(factors[0].dtype)


@_by_gram.def_vmap
def _batched(size: int, is_batched: list[bool], *factors: Array) -> tuple[Array, bool]:
    """Not by JAX's own rules, which are applied where float64 is disabled again."""
    every = [
        factor if batched else jnp.broadcast_to(factor, (size, *factor.shape))
        for factor, batched in zip(factors, is_batched, strict=True)
    ]
    return _by_gram(*every), True


def _eigenvalues(gram: Array) -> Array:
    """Descending, by the LAPACK routine behind `jnp.linalg.eigvalsh`, which computes the eigenvectors too."""
    *lead, n, _ = gram.shape
    shapes = [jax.ShapeDtypeStruct(shape, gram.dtype) for shape in (gram.shape, (*lead, n))]
    call = jax.ffi.ffi_call(
        "lapack_dsyevd_ffi", (*shapes, jax.ShapeDtypeStruct(lead, np.int32)), input_output_aliases={0: 0}
    )
    _, values, failed = call(gram, mode=np.uint8(ord("N")), uplo=np.uint8(ord("L")))
    return jnp.where(failed[..., None] == 0, values, jnp.nan)[..., ::-1]


_in_turn = one_by_one(_eigenvalues)


@functools.cache
def _has_eigenvalues_alone() -> bool:
    """Whether this jaxlib has the routine by that name. Two tiny programs."""
    gram = np.array([[2.0, 1.0], [1.0, 2.0]])
    try:
        with jax.ensure_compile_time_eval(), jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            jnp.linalg.eigvalsh(gram)  # loads LAPACK
            return bool(np.allclose(jax.jit(_eigenvalues)(gram), [3, 1]))
    except (RuntimeError, TypeError, ValueError):  # a routine that is not there, or no CPU beside the device
        return False
