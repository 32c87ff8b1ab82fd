"""Every eigenvalue, by forming the matrix: for operators with one side of a few thousand.

kappa(R^T R) = kappa(R)^2, so R^T R is never formed in the precision of R: on the host from the Gram matrix of R in
float64 (R in float32), or from the singular values of R (R in float64); so in compiled programs on the CPU, while those
of other devices have the singular values of R alone.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy.linalg import blas

from localhessian._arguments import expect_limit
from localhessian._progress import Progress, silent
from localhessian._status import Status
from localhessian._tree import is_concrete
from localhessian._types import Array, Key
from localhessian.linalg.krylov import lengths
from localhessian.linalg.operators import (
    EXACT,
    LinearMap,
    SymmetricOperator,
    check_operator,
    is_of_a_user,
    is_own_product,
    skewed,
    unit_products,
)
from localhessian.linalg.spectra import Spectrum, working_dtype
from localhessian.linalg.structure import roots, singular_values

CHUNK_BYTES = 2**27
"""What one call of products with unit vectors may hold."""


@dataclasses.dataclass(frozen=True)
class Dense:
    """All eigenvalues by LAPACK, from the explicit factor R where there is one, else from the explicit matrix.

    Cost: min(m, d) products (without a factor: d; of a map of your own two more, to see that they belong to each
    other), then O(min(m, d)^2 max(m, d)) operations; memory `m * d` numbers.

    Args:
        max_size: Largest order of the matrix to decompose: min(m, d), or d without a factor.
        max_bytes: Largest explicit R (or H) in memory, over all operators of a batch.
        max_operations: Most multiplications of the decomposition, over all operators of a batch.
    """

    max_size: int = 4096
    max_bytes: int = 2**31
    max_operations: float = math.inf

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        for name in ("max_size", "max_bytes", "max_operations"):
            expect_limit(name, getattr(self, name), whole=name == "max_size")

    def fits(self, operator: LinearMap | SymmetricOperator) -> bool:
        """Whether the operator is within the limits."""
        order, numbers = _order(operator)
        within = order <= self.max_size and numbers * operator.dtype.itemsize <= self.max_bytes
        return within and self.operations(operator) <= self.max_operations

    def operations(self, operator: LinearMap | SymmetricOperator) -> float:
        """Multiplications of the decomposition: of a Gram matrix, and of its eigenvalues."""
        order, numbers = _order(operator)
        return float(order) * numbers + 4 / 3 * float(order) ** 3 * (operator.batch or 1)

    def run(
        self,
        operator: LinearMap | SymmetricOperator,
        key: Key,
        vectors: int,
        start: Array | None = None,
        show: Progress = silent,
    ) -> Spectrum:
        """The whole spectrum; `key`, `start` and `show` are not used."""
        del key, start, show
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
        if self.operations(operator) > self.max_operations:
            raise ValueError(
                f"`Dense(max_operations={self.max_operations:.3g})` takes none of {self.operations(operator):.3g}: use "
                "`GolubKahan(...)`, fewer samples, or raise `max_operations` if the time is there."
            )
        if not self.fits(operator):
            raise ValueError(
                f"`Dense(max_bytes={self.max_bytes})` cannot hold an explicit matrix of {numbers} numbers. Use "
                "`GolubKahan(...)`, fewer samples, or raise `max_bytes` if the memory is there."
            )


def _order(operator: LinearMap | SymmetricOperator) -> tuple[int, int]:
    """The order of the matrix that is decomposed, and how many numbers are stored."""
    check_operator(operator)
    if isinstance(operator, LinearMap):
        sides = operator.in_size, operator.out_size
    elif operator.factor is not None:
        sides = operator.factor.in_size, operator.factor.out_size
    else:
        sides = operator.size, operator.size
    return min(sides), math.prod(sides) * (operator.batch or 1)


def _from_factor(factor: LinearMap, vectors: int, method: str) -> Spectrum:
    order, d = min(factor.in_size, factor.out_size), factor.in_size
    prepared = factor.prepare()
    if factor.in_size <= factor.out_size:
        rows = _rows(prepared.forward, order, factor.out_size, factor)
    else:
        rows = _rows(prepared.backward, order, d, factor)
    xp: ModuleType = np if isinstance(rows, np.ndarray) else jnp
    finite = xp.all(xp.isfinite(rows), axis=(-2, -1))
    if not (xp is np and finite.all()):
        rows = xp.where(finite[..., None, None], rows, 0)
    # A tall R stands transposed: its right vectors are the left ones of the rows.
    sigma, right = (_decompose_on_host if xp is np else _decompose_traced)(rows, d > order, vectors)
    wrong = _contradiction(prepared, rows, xp) if is_of_a_user(factor) else 0
    usable = finite & (xp.asarray(wrong) == 0)
    sigma = xp.where(usable[..., None], sigma, xp.nan)
    sigma = xp.concatenate([xp.zeros((*sigma.shape[:-1], d - order), sigma.dtype) * sigma[..., :1], sigma], axis=-1)
    rho = EXACT * float(jnp.finfo(factor.dtype).eps) * xp.max(sigma, axis=-1, keepdims=True) * xp.ones_like(sigma)
    values, wide = [sigma**2, (2 * sigma + rho) * rho, sigma, rho], working_dtype(factor.dtype)
    eigenvalues, residuals, sigma, rho = (jnp.asarray(value, wide) for value in values)
    right = None if right is None else jnp.asarray(right, wide)
    spectrum = _complete(eigenvalues, residuals, sigma, rho, right, usable, d, factor.dtype, order, method)
    status = jnp.where(jnp.asarray(finite & ~usable), jnp.asarray(wrong, jnp.int32), spectrum.status)
    return dataclasses.replace(spectrum, status=status.astype(jnp.int32))


def _contradiction(prepared: LinearMap, rows: Any, xp: ModuleType) -> Any:
    """The code of what is wrong where the two products of a user's map, of random vectors, are not of one matrix; 0."""
    tall = prepared.in_size <= prepared.out_size
    size = lengths(rows.reshape(1, -1), xp)[0]  # squares of its own dtype might vanish
    known, other = (prepared.mv, prepared.rmv) if tall else (prepared.rmv, prepared.mv)
    unlike = _departs(known, xp.swapaxes(rows, -1, -2), prepared.dtype, size, xp)
    if xp is np and unlike:
        # What is no matrix need not have a transpose that can be made.
        repeats = _repeats(known, rows.shape[:1], prepared.dtype)
        return np.asarray(int(Status.NOT_LINEAR if repeats else Status.NOT_DETERMINISTIC))
    wrong = xp.where(_departs(other, rows, prepared.dtype, size, xp), int(Status.NOT_ADJOINT), 0)
    return xp.where(unlike, int(Status.NOT_LINEAR), wrong)


def _departs(product: Callable, matrix: Any, dtype: Any, size: Any, xp: ModuleType) -> Any:
    """Whether the product of a random vector differs from the matrix's by more than rounding."""
    v = jnp.asarray(np.random.default_rng(0).standard_normal(matrix.shape[-1]), dtype)
    moved, v = (xp.asarray(part, np.float64 if xp is np else dtype) for part in (product(v), v))
    apart = moved - (matrix @ v if xp is np else jnp.matmul(matrix, v, precision="highest"))
    return ~(lengths(apart, xp) <= skewed(float(jnp.finfo(dtype).eps)) * size)


def _rows(product: Partial, order: int, long: int, operator: LinearMap | SymmetricOperator) -> Any:
    """Products with the `order` unit vectors, (s, order, long): on the host in chunks, under tracing at once.

    A chunk is small enough for the product's intermediate results: 8 times what goes in and comes out.
    """
    batch, dtype = operator.batch, operator.dtype
    numbers = 8 * (order + long) * (batch or 1)
    count = max(1, min(order, CHUNK_BYTES // (numbers * dtype.itemsize)))
    chunk = unit_products(product, order, batch, dtype, 0, count)
    # Numbers now? The operator itself may hide traced values in a closure.
    if not is_concrete(chunk):
        return jnp.moveaxis(unit_products(product, order, batch, dtype), 0, -2)
    lead = () if batch is None else (batch,)
    out = np.empty((*lead, order, long), np.float64 if dtype == np.float64 else np.float32)
    for begin in range(0, order, count):
        start = min(begin, order - count)  # the last chunk overlaps, so that one program serves all
        if start:
            chunk = unit_products(product, order, batch, dtype, start, count)
        out[..., start : start + count, :] = np.moveaxis(np.asarray(chunk), 0, -2)
    return out


def _decompose_on_host(rows: np.ndarray, wide: bool, vectors: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Singular values (s, order) ascending in float64, and right singular vectors of the largest if asked."""
    lead, (order, long) = rows.shape[:-2], rows.shape[-2:]
    decompose = partial(_decompose_rows, wide=wide, vectors=vectors)
    found = [decompose(matrix) for matrix in rows.reshape(-1, order, long)]
    sigma = np.stack([values for values, _ in found]).reshape(*lead, order)
    if not vectors:
        return sigma, None
    right = np.stack([basis for _, basis in found if basis is not None])
    return sigma, right.reshape(*lead, *right.shape[1:])


def _decompose_rows(rows: np.ndarray, wide: bool, vectors: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Singular values ascending of R (`wide`) or R^T, and the right singular vectors of R for the largest."""
    if vectors:
        return _right_vectors(rows.astype(np.float64), wide, vectors)
    if rows.dtype == np.float64:
        return np.linalg.svd(np.linalg.qr(rows.T, mode="r"), compute_uv=False)[::-1], None
    return roots(_float64_gram(rows)), None


def _right_vectors(rows: np.ndarray, wide: bool, vectors: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal also where R has no rank left: rows = L Q^T, and the SVD of the small L."""
    mode: Any = "complete" if wide and vectors > len(rows) else "reduced"
    basis, triangle = np.linalg.qr(rows.T, mode=mode)
    left, sigma, right = np.linalg.svd(triangle.T)
    chosen = basis @ right.T[:, :vectors] if wide else left[:, :vectors]
    return sigma[::-1], chosen[:, ::-1]


def _float64_gram(matrix: np.ndarray, columns: int = 8192) -> np.ndarray:
    """The upper triangle of M M^T in float64, a block of columns at a time."""
    gram = np.zeros((len(matrix),) * 2, order="F")
    for start in range(0, matrix.shape[1], columns):
        block = np.asfortranarray(matrix[:, start : start + columns], np.float64)
        gram = blas.dsyrk(1.0, block, beta=1.0, c=gram, overwrite_c=True)
    return gram


def _decompose_traced(rows: Array, wide: bool, vectors: int) -> tuple[Array, Array | None]:
    if not vectors:
        return singular_values(rows)[..., ::-1], None
    left, sigma, right = jnp.linalg.svd(rows, full_matrices=wide and vectors > rows.shape[-2])
    chosen = jnp.swapaxes(right, -1, -2) if wide else left
    return sigma[..., ::-1], chosen[..., :vectors][..., ::-1]


def _from_matrix(operator: SymmetricOperator, vectors: int, method: str) -> Spectrum:
    prepared = operator.prepare()
    matrix = _rows(prepared.product, operator.size, operator.size, operator)
    xp: ModuleType = np if isinstance(matrix, np.ndarray) else jnp
    matrix = matrix.astype(np.float64) if xp is np else matrix
    eps = float(jnp.finfo(operator.dtype).eps)
    finite = xp.all(xp.isfinite(matrix), axis=(-2, -1))
    matrix = xp.where(finite[..., None, None], matrix, 0)
    transposed = xp.swapaxes(matrix, -1, -2)
    norm, asymmetry = (lengths(part.reshape(*part.shape[:-2], -1), xp) for part in (matrix, matrix - transposed))
    skew = asymmetry > 1e3 * eps * norm
    values, basis = xp.linalg.eigh((matrix + transposed) / 2)
    # On the host products of random vectors have told before.
    traced = xp is jnp and is_own_product(operator.product)
    bent = _departs(prepared.mv, transposed, operator.dtype, norm, jnp) if traced else False
    values = xp.where((finite & ~(skew | bent))[..., None], values, xp.nan)
    # H is within half of its asymmetry of the matrix that is decomposed.
    error = EXACT * eps * xp.max(xp.abs(values), axis=-1) + asymmetry / 2
    residuals = error[..., None] * xp.ones_like(values)
    wide = working_dtype(operator.dtype)
    right = jnp.asarray(basis[..., -vectors:], wide) if vectors else None
    eigenvalues, residuals = jnp.asarray(values, wide), jnp.asarray(residuals, wide)
    d = operator.size
    spectrum = _complete(eigenvalues, residuals, None, None, right, finite, d, operator.dtype, d, method)
    wrong = Status.NOT_SYMMETRIC
    lead = () if operator.batch is None else (operator.batch,)
    if xp is np and skew.any() and not _repeats(prepared.mv, (*lead, d), operator.dtype):
        wrong = Status.NOT_DETERMINISTIC
    status = jnp.where(jnp.asarray(finite & skew), int(wrong), spectrum.status)
    status = jnp.where(jnp.asarray(finite & bent), int(Status.NOT_LINEAR), status)
    known = spectrum.complete & ~jnp.asarray(skew | bent)
    missing = jnp.where(known, 0, jnp.inf).astype(spectrum.missing.dtype)
    return dataclasses.replace(spectrum, status=status.astype(jnp.int32), complete=known, missing=missing)


def _repeats(product: Callable, shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether the same product, of vectors `shape`, gives the same answer twice."""
    v = jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)
    one, again = (np.asarray(product(v), np.float64) for _ in range(2))
    return bool(np.linalg.norm(one - again) <= skewed(float(jnp.finfo(dtype).eps)) * np.linalg.norm(one))


def _complete(eigenvalues, residuals, sigma, rho, vectors, finite, size, dtype, matvecs, method) -> Spectrum:
    status = jnp.where(jnp.asarray(finite), int(Status.CONVERGED), int(Status.NON_FINITE)).astype(jnp.int32)
    return Spectrum(
        eigenvalues=eigenvalues,
        multiplicities=jnp.ones(eigenvalues.shape, jnp.int32),
        residual_norms=residuals,
        vectors=vectors,
        singular_values=sigma,
        singular_residual_norms=rho,
        status=status,
        complete=jnp.asarray(finite),
        matvecs=jnp.asarray(matvecs, jnp.int32),
        size=size,
        dtype=dtype,
        method=method,
        missing=jnp.where(jnp.asarray(finite), 0, jnp.inf).astype(eigenvalues.dtype),
    )
