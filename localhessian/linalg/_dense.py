"""Every eigenvalue, by forming the matrix: for operators with one side of a few thousand.

kappa(R^T R) = kappa(R)^2, so R^T R is never formed in the precision of R: on the host from the Gram matrix of R in
float64 (R in float32), or from the singular values of R (R in float64); so in compiled programs on the CPU, while those
of other devices have the singular values of R alone.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.linalg import blas

from localhessian._arguments import expect_limit
from localhessian._blas import threads_that_pay
from localhessian._programs import complete_svd, eigh, svd
from localhessian._progress import Progress, silent
from localhessian._status import Status
from localhessian._tree import is_concrete, to_device
from localhessian._types import Array, Key
from localhessian.linalg.krylov import HOST, TRACED, Arithmetic, told_apart
from localhessian.linalg.operators import (
    EXACT,
    LinearMap,
    Operator,
    Streamed,
    SymmetricOperator,
    check_operator,
    eps_of,
    is_repeatable,
    skewed,
    triangle_of,
    unit_products,
)
from localhessian.linalg.spectra import Spectrum, packed
from localhessian.linalg.structure import cores_for, in_parallel, roots, singular_values

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

    def fits(self, operator: Operator) -> bool:
        """Whether the operator is within the limits."""
        order, numbers = _order(operator)
        within = order <= self.max_size and numbers * operator.dtype.itemsize <= self.max_bytes
        return within and self.operations(operator) <= self.max_operations

    def operations(self, operator: Operator) -> float:
        """Multiplications of the decomposition: of a Gram matrix, and of its eigenvalues."""
        order, numbers = _order(operator)
        if isinstance(operator, Streamed):  # by QR, of rows that are not held
            numbers = 4 * operator.rows * operator.size
        return float(order) * numbers + 4 / 3 * float(order) ** 3 * (operator.batch or 1)

    def run(
        self,
        operator: Operator,
        key: Key,
        vectors: int,
        start: Array | None = None,
        show: Progress = silent,
    ) -> Spectrum:
        """The whole spectrum; `key`, `start` and `show` are not used."""
        del key, start, show
        self._check(operator)
        factor = operator.factor
        if isinstance(operator, Streamed):
            return _from_stream(operator, vectors, str(self))
        if factor is None:
            return _from_matrix(operator.symmetric, _matrix(operator.symmetric), vectors, str(self))
        return _from_factor(factor, vectors, str(self))

    def _check(self, operator: Operator) -> None:
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


def _order(operator: Operator) -> tuple[int, int]:
    """The order of the matrix that is decomposed, and how many numbers are stored."""
    check_operator(operator)
    factor = operator.factor
    sides = (operator.size, operator.size if factor is None else factor.out_size)
    return min(sides), math.prod(sides) * (operator.batch or 1)


def _from_stream(operator: Streamed, vectors: int, method: str) -> Spectrum:
    """In one pass, from a factor in float64 that has no more rows than columns."""
    rows = operator.triangle(_matrix)
    if rows is None:
        return _from_matrix(operator, operator.matrix(_matrix), vectors, method)
    is_wide = len(rows) < operator.size
    return _from_rows(operator, rows if is_wide else rows.T, None, vectors, method)


def _matrix(operator: Operator) -> Any:
    """The numbers of an operator: of a linear map R, of a symmetric operator H."""
    if isinstance(operator, SymmetricOperator) and not operator.in_programs:
        return np.asarray(operator.to_dense())
    prepared = operator.prepare()
    if isinstance(prepared, LinearMap) and prepared.in_size > prepared.out_size:
        return _rows(prepared.T, prepared.in_size)
    rows = _rows(prepared, prepared.out_size if isinstance(prepared, LinearMap) else prepared.size)
    return rows.swapaxes(-1, -2)


def _from_factor(factor: LinearMap, vectors: int, method: str) -> Spectrum:
    prepared = factor.prepare()
    rows = _rows(prepared if factor.in_size <= factor.out_size else prepared.T, max(factor.in_size, factor.out_size))
    return _from_rows(factor, rows, prepared if factor.on_trust else None, vectors, method)


def _from_rows(operator: Operator, rows: Any, doubted: LinearMap | None, vectors: int, method: str) -> Spectrum:
    """Of R, or of R^T where that has more columns; `doubted`: the prepared map of a user's own."""
    order, d = rows.shape[-2], operator.size
    on = _arithmetic(rows)
    xp = on.xp
    # A tall R stands transposed: its right vectors are the left ones of the rows.
    sigma, right = (_decompose_on_host if on is HOST else _decompose_traced)(rows, d > order, vectors)
    finite = ~xp.any(xp.isnan(sigma), axis=-1)
    wrong = 0 if doubted is None else _contradiction(doubted, rows, on)
    usable = finite & (xp.asarray(wrong) == 0)
    sigma = xp.where(usable[..., None], sigma, xp.nan)
    sigma = xp.concatenate([xp.zeros((*sigma.shape[:-1], d - order), sigma.dtype) * sigma[..., :1], sigma], axis=-1)
    rho = EXACT * eps_of(operator.dtype) * xp.max(sigma, axis=-1, keepdims=True) * xp.ones_like(sigma)
    status = xp.where(finite, xp.where(usable, int(Status.CONVERGED), wrong), int(Status.NON_FINITE))
    record: dict[str, Any] = {"size": d, "dtype": operator.dtype, "method": method, "matvecs": order, "vectors": right}
    copies = np.ones(sigma.shape, np.int32)
    return packed(sigma, copies, rho, of_factor=True, status=status, complete=usable, **record)


def _contradiction(prepared: LinearMap, rows: Any, on: Arithmetic) -> Any:
    """The code of what is wrong where the two products of a user's map, of random vectors, are not of one matrix; 0."""
    tall = prepared.in_size <= prepared.out_size
    xp, size = on.xp, on.lengths(rows.reshape(1, -1))[0]  # squares of its own dtype might vanish
    known, other = (prepared, prepared.T) if tall else (prepared.T, prepared)
    unlike = _departs(known, xp.swapaxes(rows, -1, -2), size, on)
    if on is HOST and unlike:
        # What is no matrix need not have a transpose that can be made.
        return np.asarray(int(Status.NOT_LINEAR if is_repeatable(known).all() else Status.NOT_DETERMINISTIC))
    wrong = xp.where(_departs(other, rows, size, on), int(Status.NOT_ADJOINT), 0)
    return xp.where(unlike, int(Status.NOT_LINEAR), wrong)


def _departs(operator: Operator, matrix: Any, size: Any, on: Arithmetic) -> Any:
    """Whether the product of a random vector differs from the matrix's by more than rounding."""
    xp, dtype = on.xp, operator.dtype
    v = to_device(np.random.default_rng(0).standard_normal(matrix.shape[-1]), dtype)
    moved, v = (xp.asarray(part, np.float64 if on is HOST else dtype) for part in (operator.mv(v), v))
    apart = moved - on.multiply(matrix, v[..., None])[..., 0]
    return ~(on.lengths(apart) <= skewed(eps_of(dtype)) * size)


def _arithmetic(matrix: Any) -> Arithmetic:
    return HOST if isinstance(matrix, np.ndarray) else TRACED


def _rows(prepared: Operator, long: int) -> Any:
    """Products with the unit vectors, (s, order, long): on the host in chunks, under tracing at once.

    A chunk is small enough for the product's intermediate results: 8 times what goes in and comes out.
    """
    order, batch, dtype = prepared.size, prepared.batch, prepared.dtype
    numbers = 8 * (order + long) * (batch or 1)
    count = max(1, min(order, CHUNK_BYTES // (numbers * dtype.itemsize)))
    chunk = unit_products(prepared, 0, count)
    # Numbers now? The operator itself may hide traced values in a closure.
    if not is_concrete(chunk):
        return jnp.moveaxis(unit_products(prepared), 0, -2)
    lead = () if batch is None else (batch,)
    out = np.empty((*lead, order, long), np.float64 if dtype == np.float64 else np.float32)
    for begin in range(0, order, count):
        start = min(begin, order - count)  # the last chunk overlaps, so that one program serves all
        if start:
            chunk = unit_products(prepared, start, count)
        out[..., start : start + count, :] = np.moveaxis(np.asarray(chunk), 0, -2)
    return out


def _decompose_on_host(rows: np.ndarray, wide: bool, vectors: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Singular values (s, order) ascending in float64, and right singular vectors of the largest if asked.

    NaN of a matrix that is not finite, as in a program.
    """
    lead, (order, long) = rows.shape[:-2], rows.shape[-2:]
    finite = np.all(np.isfinite(rows), axis=(-2, -1))
    if not finite.all():
        rows = np.where(finite[..., None, None], rows, 0)
    decompose = partial(_decompose_rows, wide=wide, vectors=vectors)
    matrices = rows.reshape(-1, order, long)
    workers = cores_for(len(matrices))
    found = list(in_parallel(decompose, matrices, workers) if workers > 1 else map(decompose, matrices))
    sigma = np.stack([values for values, _ in found]).reshape(*lead, order)
    sigma[~finite] = np.nan
    if not vectors:
        return sigma, None
    right = np.stack([basis for _, basis in found if basis is not None])
    return sigma, right.reshape(*lead, *right.shape[1:])


def _decompose_rows(rows: np.ndarray, wide: bool, vectors: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Singular values ascending of R (`wide`) or R^T, and the right singular vectors of R for the largest."""
    with threads_that_pay(rows.size):
        if vectors:
            return _right_vectors(rows.astype(np.float64), wide, vectors)
        small = triangle_of(rows.T) if rows.dtype == np.float64 else _float64_gram(rows)
    with threads_that_pay(small.size):
        return (np.linalg.svd(small, compute_uv=False)[::-1] if rows.dtype == np.float64 else roots(small)), None


def _right_vectors(rows: np.ndarray, wide: bool, vectors: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal also where R has no rank left: rows = L Q^T, and the SVD of the small L."""
    mode: Any = "complete" if wide and vectors > len(rows) else "reduced"
    basis, triangle = np.linalg.qr(rows.T, mode=mode)
    with threads_that_pay(triangle.size):
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
    finite = jnp.all(jnp.isfinite(rows), axis=(-2, -1), keepdims=True)
    left, sigma, right = (complete_svd if wide and vectors > rows.shape[-2] else svd)(jnp.where(finite, rows, 0))
    chosen = jnp.swapaxes(right, -1, -2) if wide else left
    return jnp.where(finite[..., 0], sigma, jnp.nan)[..., ::-1], chosen[..., :vectors][..., ::-1]


def _from_matrix(operator: SymmetricOperator, matrix: Any, vectors: int, method: str) -> Spectrum:
    on = _arithmetic(matrix)
    xp, matrix = on.xp, matrix.astype(on.small(matrix.dtype))
    eps = eps_of(operator.dtype)
    finite = xp.all(xp.isfinite(matrix), axis=(-2, -1))
    matrix = xp.where(finite[..., None, None], matrix, 0)
    transposed = xp.swapaxes(matrix, -1, -2)
    parts = on.held((matrix, matrix - transposed))  # the length of nothing has no derivative
    norm, asymmetry = (on.lengths(part.reshape(*part.shape[:-2], -1)) for part in parts)
    skew = asymmetry > 1e3 * eps * norm
    values, basis = eigh((matrix + transposed) / 2)
    # On the host products of random vectors have told before.
    traced = on is TRACED and operator.on_trust
    bent = _departs(operator.prepare(), matrix, norm, TRACED) if traced else False
    values = xp.where((finite & ~(skew | bent))[..., None], values, xp.nan)
    # H is within half of its asymmetry of the matrix that is decomposed.
    error = EXACT * eps * xp.max(xp.abs(values), axis=-1) + asymmetry / 2
    residuals = error[..., None] * xp.ones_like(values)
    right = basis[..., -vectors:] if vectors else None
    status = xp.where(skew, int(Status.NOT_SYMMETRIC), int(Status.CONVERGED))
    status = xp.where(finite, xp.where(bent, int(Status.NOT_LINEAR), status), int(Status.NON_FINITE))
    record: dict[str, Any] = {"size": operator.size, "dtype": operator.dtype, "method": method, "vectors": right}
    copies, known = np.ones(values.shape, np.int32), finite & ~(skew | bent)
    record |= {"matvecs": operator.size, "status": status, "complete": known}
    found = packed(values, copies, residuals, of_factor=False, **record)
    return told_apart(found, operator) if on is HOST else found
