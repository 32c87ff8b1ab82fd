"""Every eigenvalue, by forming the matrix: for operators with one side of a few thousand.

kappa(R^T R) = kappa(R)^2, so R^T R is never formed in the precision of R: on the host from the Gram matrix of R in
float64 (R in float32), or from the singular values of R (R in float64); under jit from the singular values of R.
"""

import dataclasses
import math
from types import ModuleType

import jax.numpy as jnp
import numpy as np
from scipy.linalg import blas

from localhessian._status import Status
from localhessian._tree import is_concrete
from localhessian._types import Array, Key
from localhessian.linalg._operators import LinearMap, SymmetricOperator, unit_products
from localhessian.linalg._spectrum import Spectrum

ROUNDING = 10
"""Error of a value in units of eps times the largest, for the rounding of the products (heuristic: tests see 3)."""


@dataclasses.dataclass(frozen=True)
class Dense:
    """All eigenvalues by LAPACK, from the explicit factor R where there is one, else from the explicit matrix.

    Cost: min(m, d) products (without a factor: d), then O(min(m, d)^2 max(m, d)) operations; memory `m * d` numbers.

    Args:
        max_size: Largest order of the matrix to decompose: min(m, d), or d without a factor.
        max_bytes: Largest explicit R (or H) in memory, over all operators of a batch.
    """

    max_size: int = 4096
    max_bytes: int = 2**31

    def fits(self, operator: LinearMap | SymmetricOperator) -> bool:
        """Whether the operator is within the limits."""
        order, numbers = _order(operator)
        return order <= self.max_size and numbers * operator.dtype.itemsize <= self.max_bytes

    def run(self, operator: LinearMap | SymmetricOperator, key: Key, vectors: int) -> Spectrum:
        """The whole spectrum; `key` is not used."""
        del key
        self._check(operator)
        if isinstance(operator, LinearMap):
            return _from_factor(operator, vectors, str(self))
        if operator.factor is not None:
            return _from_factor(operator.factor, vectors, str(self))
        return _from_matrix(operator, vectors, str(self))

    def _check(self, operator: LinearMap | SymmetricOperator) -> None:
        order, numbers = _order(operator)
        if order > self.max_size:
            raise ValueError(
                f"`Dense(max_size={self.max_size})` cannot hold an operator of size {order}. Use `Lanczos(...)` or "
                "`GolubKahan(...)`, or raise `max_size` if the memory is there."
            )
        if not self.fits(operator):
            raise ValueError(
                f"`Dense(max_bytes={self.max_bytes})` cannot hold an explicit matrix of {numbers} numbers. Use "
                "`GolubKahan(...)`, fewer samples, or raise `max_bytes` if the memory is there."
            )


def _order(operator: LinearMap | SymmetricOperator) -> tuple[int, int]:
    """The order of the matrix that is decomposed, and how many numbers are stored."""
    if isinstance(operator, LinearMap):
        sides = operator.in_size, operator.out_size
    elif operator.factor is not None:
        sides = operator.factor.in_size, operator.factor.out_size
    else:
        sides = operator.size, operator.size
    return min(sides), math.prod(sides) * (operator.batch or 1)


def _from_factor(factor: LinearMap, vectors: int, method: str) -> Spectrum:
    order, d = min(factor.in_size, factor.out_size), factor.in_size
    on_host = is_concrete(factor)
    rows, right = (_decompose_on_host if on_host else _decompose_traced)(factor, vectors)
    xp = np if on_host else jnp
    sigma = xp.concatenate([xp.zeros((*rows.shape[:-1], d - order), rows.dtype), rows], axis=-1)
    finite = xp.all(xp.isfinite(sigma), axis=-1)
    rho = ROUNDING * float(jnp.finfo(factor.dtype).eps) * xp.max(sigma, axis=-1, keepdims=True) * xp.ones_like(sigma)
    values = [sigma**2, (2 * sigma + rho) * rho, sigma, rho]
    eigenvalues, residuals, sigma, rho = (jnp.asarray(value, factor.dtype) for value in values)
    return _complete(eigenvalues, residuals, sigma, rho, right, finite, d, factor.dtype, order, method)


def _decompose_on_host(factor: LinearMap, vectors: int) -> tuple[np.ndarray, Array | None]:
    """Singular values (s, min(m, d)) ascending in float64, and right singular vectors of the largest if asked."""
    rows = _explicit(factor)
    lead, (order, long) = rows.shape[:-2], rows.shape[-2:]
    found = [_decompose_rows(matrix, vectors) for matrix in rows.reshape(-1, order, long)]
    sigma = np.stack([values for values, _ in found]).reshape(*lead, order)
    if not vectors:
        return sigma, None
    left = np.stack([basis for _, basis in found if basis is not None]).reshape(*lead, order, vectors)
    if order < factor.in_size:  # rows are those of R: v = R^T u / sigma
        left = np.swapaxes(rows, -1, -2).astype(np.float64) @ left
        left = left / np.linalg.norm(left, axis=-2, keepdims=True)
    return sigma, jnp.asarray(left, factor.dtype)


def _decompose_rows(matrix: np.ndarray, vectors: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Singular values of a wide matrix ascending, and left singular vectors of the largest."""
    if not np.all(np.isfinite(matrix)):
        basis = np.full((len(matrix), vectors), np.nan) if vectors else None
        return np.full(len(matrix), np.nan), basis
    if matrix.dtype == np.float64:
        triangle = np.asarray(np.linalg.qr(matrix.T, mode="r")).T
        left, sigma, _ = np.linalg.svd(triangle)
        return sigma[::-1], left[:, :vectors][:, ::-1] if vectors else None
    gram = _float64_gram(matrix)
    if not vectors:
        return np.sqrt(np.maximum(np.linalg.eigvalsh(gram, UPLO="U"), 0)), None
    values, basis = np.linalg.eigh(gram, UPLO="U")
    return np.sqrt(np.maximum(values, 0)), basis[:, -vectors:]


def _float64_gram(matrix: np.ndarray, columns: int = 8192) -> np.ndarray:
    """The upper triangle of M M^T in float64, a block of columns at a time."""
    gram = np.zeros((len(matrix),) * 2, order="F")
    for start in range(0, matrix.shape[1], columns):
        block = np.asfortranarray(matrix[:, start : start + columns], np.float64)
        gram = blas.dsyrk(1.0, block, beta=1.0, c=gram, overwrite_c=True)
    return gram


def _explicit(factor: LinearMap, chunk_bytes: int = 2**27) -> np.ndarray:
    """R or R^T, whichever is wide, (s, min, max), by products with unit vectors in chunks of equal shape."""
    prepared = factor.prepare()
    tall = factor.in_size <= factor.out_size
    product = prepared.forward if tall else prepared.backward
    order, long = (factor.in_size, factor.out_size) if tall else (factor.out_size, factor.in_size)
    count = max(1, min(order, chunk_bytes // (long * (factor.batch or 1) * factor.dtype.itemsize)))
    lead = () if factor.batch is None else (factor.batch,)
    out = np.empty((*lead, order, long), np.float64 if factor.dtype == np.float64 else np.float32)
    for begin in range(0, order, count):
        start = min(begin, order - count)  # the last chunk overlaps, so that one program serves all
        rows = np.asarray(unit_products(product, order, factor.batch, factor.dtype, start, count))
        out[..., start : start + count, :] = np.moveaxis(rows, 0, -2)
    return out


def _decompose_traced(factor: LinearMap, vectors: int) -> tuple[Array, Array | None]:
    matrix = factor.to_dense()
    if not vectors:
        return jnp.linalg.svd(matrix, compute_uv=False)[..., ::-1], None
    _, sigma, right = jnp.linalg.svd(matrix, full_matrices=False)
    return sigma[..., ::-1], jnp.swapaxes(right[..., :vectors, :], -1, -2)[..., ::-1]


def _from_matrix(operator: SymmetricOperator, vectors: int, method: str) -> Spectrum:
    formed = operator.to_dense()
    on_host = is_concrete(formed)
    xp: ModuleType = np if on_host else jnp
    matrix = np.asarray(formed).astype(np.float64) if on_host else formed
    eps = float(jnp.finfo(operator.dtype).eps)
    finite = xp.all(xp.isfinite(matrix), axis=(-2, -1))
    matrix = xp.where(finite[..., None, None], matrix, 0)
    transposed = xp.swapaxes(matrix, -1, -2)
    largest = xp.max(xp.abs(matrix), axis=(-2, -1))
    skew = xp.max(xp.abs(matrix - transposed), axis=(-2, -1)) > 1e3 * eps * largest
    values, basis = xp.linalg.eigh((matrix + transposed) / 2)
    values = xp.where((finite & ~skew)[..., None], values, xp.nan)
    residuals = ROUNDING * eps * xp.max(xp.abs(values), axis=-1, keepdims=True) * xp.ones_like(values)
    right = jnp.asarray(basis[..., -vectors:], operator.dtype) if vectors else None
    eigenvalues, residuals = jnp.asarray(values, operator.dtype), jnp.asarray(residuals, operator.dtype)
    d = operator.size
    spectrum = _complete(eigenvalues, residuals, None, None, right, finite, d, operator.dtype, d, method)
    status = jnp.where(jnp.asarray(finite & skew), int(Status.NOT_SYMMETRIC), spectrum.status)
    return dataclasses.replace(spectrum, status=status)


def _complete(eigenvalues, residuals, sigma, rho, vectors, finite, size, dtype, matvecs, method) -> Spectrum:
    status = jnp.where(jnp.asarray(finite), int(Status.CONVERGED), int(Status.NON_FINITE))
    return Spectrum(
        eigenvalues=eigenvalues,
        multiplicities=jnp.ones(eigenvalues.shape, jnp.int32),
        residual_norms=residuals,
        vectors=vectors,
        singular_values=sigma,
        singular_residual_norms=rho,
        status=status,
        complete=jnp.asarray(finite),
        matvecs=jnp.asarray(matvecs),
        size=size,
        dtype=dtype,
        method=method,
    )
