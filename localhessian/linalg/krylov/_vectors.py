"""Vectors and bases of the Krylov methods.

Vectors carry a leading axis `s` of independent problems, and a block an axis `p`; a basis is `(s, rows, d)`.
"""

from typing import Any

from localhessian._types import Array, Key
from localhessian.linalg.krylov._arithmetic import Arithmetic


def start_block(start: Array | None, key: Key, shape: tuple[int, int, int], dtype: Any, on: Arithmetic) -> Any:
    """Where a run begins: random directions, or random sums of the vectors given, `(s, d, k)` or `(s, d)`."""
    xp, (s, p, d) = on.xp, shape
    random = on.random(key, shape, dtype)
    if start is None:
        return random
    given = xp.asarray(start, dtype).reshape(s, d, -1)
    given = xp.swapaxes(xp.where(xp.isfinite(given), given, 0), 1, 2)
    count = given.shape[1]
    # Every vector has an equal part in one row of the block; rows that get none are random.
    signs = xp.where(on.random(key, (s, count, 1), dtype) < 0, -1, 1).astype(given.dtype)
    sums = xp.stack([xp.sum((signs * given)[:, row::p], axis=1) for row in range(min(p, count))], axis=1)
    # Zero vectors, and copies that cancel, begin nothing.
    sums = xp.where(xp.any(sums != 0, axis=2, keepdims=True), sums, random[:, : sums.shape[1]])
    return xp.concatenate([sums, random[:, sums.shape[1] :]], axis=1)


def mixed(given: Any, random: Any, on: Arithmetic) -> Any:
    """Rows (s, p, d) that have equal parts of both.

    Vectors near to the large end alone span a space that is nearly invariant: its smallest Ritz values meet any
    tolerance, and are not the smallest of the operator.
    """
    return unit_rows(given, on) + unit_rows(random, on)


def combine(weights: Any, basis: Any, on: Arithmetic) -> Any:
    """Ritz vectors (s, k, d) from weights (s, K, k) and the first K rows of a basis."""
    basis = basis[:, : weights.shape[1]]
    return on.multiply(on.xp.swapaxes(weights, 1, 2).astype(basis.dtype), basis)


def unit_rows(vectors: Any, on: Arithmetic) -> Any:
    """Every vector at unit length; zero stays zero."""
    norms = on.lengths(vectors)[..., None]
    return vectors / on.xp.where(norms > 0, norms, 1)


def sort_real_first(values: Any, errors: Any, real: Any, on: Arithmetic) -> tuple[Any, Any, Any]:
    """Real values ascending with their errors, empty slots at the end with NaN; and which are real."""
    xp = on.xp
    order = xp.argsort(xp.where(real, values, xp.inf), axis=-1)
    values, errors, real = (xp.take_along_axis(part, order, axis=-1) for part in (values, errors, real))
    return xp.where(real, values, xp.nan), xp.where(real, errors, xp.nan), real


def largest_vectors(ritz: Any, values: Any, real: Any, vectors: int, on: Arithmetic) -> Any:
    """Of Ritz vectors (s, k, d) those of the largest values, ascending, in columns; NaN where there is none."""
    if not vectors:
        return None
    xp = on.xp
    last = xp.argsort(xp.where(real, values, -xp.inf), axis=1)[:, -vectors:, None]
    taken = xp.take_along_axis(ritz, last, 1)
    return xp.swapaxes(xp.where(xp.take_along_axis(real[:, :, None], last, 1), taken, xp.nan), 1, 2)
