"""Vectors and bases of the Krylov methods, by NumPy on the host and by jax.numpy in a compiled program (`xp`).

Vectors carry a leading axis `s` of independent problems, and a block an axis `p`; a basis is `(s, rows, d)`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._types import Array, Key


def random_block(key: Key, shape: tuple[int, int, int], dtype: Any, xp: Any) -> Any:
    """Normal random vectors (s, p, d); on the host by NumPy, so that no shape needs a program."""
    if xp is jnp:
        return jax.random.normal(key, shape, dtype)
    seed = np.ravel(np.asarray(jax.random.key_data(key))).tolist()
    return np.random.default_rng(seed).standard_normal(shape, dtype)


def start_block(start: Array | None, key: Key, shape: tuple[int, int, int], dtype: Any, xp: Any) -> Any:
    """Where a run begins: random directions, or random sums of the vectors given, `(s, d, k)` or `(s, d)`."""
    s, p, d = shape
    random = random_block(key, shape, dtype, xp)
    if start is None:
        return random
    given = xp.asarray(start, dtype).reshape(s, d, -1)
    given = xp.swapaxes(xp.where(xp.isfinite(given), given, 0), 1, 2)
    count = given.shape[1]
    # Every vector has an equal part in one row of the block; rows that get none are random.
    signs = xp.where(random_block(key, (s, count, 1), dtype, xp) < 0, -1, 1).astype(given.dtype)
    sums = xp.stack([xp.sum((signs * given)[:, row::p], axis=1) for row in range(min(p, count))], axis=1)
    # Zero vectors, and copies that cancel, begin nothing.
    sums = xp.where(xp.any(sums != 0, axis=2, keepdims=True), sums, random[:, : sums.shape[1]])
    return xp.concatenate([sums, random[:, sums.shape[1] :]], axis=1)


def mixed(given: Any, random: Any, xp: Any) -> Any:
    """Rows (s, p, d) that have equal parts of both.

    Vectors near to the large end alone span a space that is nearly invariant: its smallest Ritz values meet any
    tolerance, and are not the smallest of the operator.
    """
    return unit_rows(given, xp) + unit_rows(random, xp)


def multiply(a: Any, b: Any, xp: Any) -> Any:
    """A matrix product in full precision."""
    return np.matmul(a, b) if xp is np else jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def combine(weights: Any, basis: Any, xp: Any) -> Any:
    """Ritz vectors (s, k, d) from weights (s, K, k) and the first K rows of a basis."""
    basis = basis[:, : weights.shape[1]]
    return multiply(xp.swapaxes(weights, 1, 2).astype(basis.dtype), basis, xp)


def pick(array: Any, places: Any, xp: Any) -> Any:
    """The entries (s, k) of an array (s, K)."""
    return array[np.arange(len(array))[:, None], places] if xp is np else xp.take_along_axis(array, places, 1)


def lengths(vectors: Any, xp: Any) -> Any:
    """Euclidean norms along the last axis, also of numbers whose squares overflow or vanish.

    On the host in one pass over the numbers, unless that shows such a case.
    """
    if xp is np:
        squares, small = np.vecdot(vectors, vectors), _small(vectors.dtype)
        if ((squares > small) & (squares < 1 / small)).all():
            return np.sqrt(squares)
    largest = xp.max(xp.abs(vectors), axis=-1)
    unit = xp.where((largest > 0) & xp.isfinite(largest), largest, 1)
    return unit * xp.linalg.norm(vectors / unit[..., None], axis=-1)


@functools.cache
def _small(dtype: Any) -> float:
    """A sum of squares above this has lost nothing to underflow, of up to 1e8 numbers."""
    return float(np.finfo(dtype).tiny) ** 0.6


def unit_rows(vectors: Any, xp: Any) -> Any:
    """Every vector at unit length; zero stays zero."""
    norms = lengths(vectors, xp)[..., None]
    return vectors / xp.where(norms > 0, norms, 1)


def sort_real_first(values: Any, real: Any, *others: Any, xp: Any) -> tuple[Any, ...]:
    """Real values ascending, empty slots at the end with NaN; the same order for arrays along their last axis."""
    order = xp.argsort(xp.where(real, values, xp.inf), axis=-1)
    taken = xp.take_along_axis(real, order, axis=-1)
    out = [xp.where(taken, xp.take_along_axis(values, order, axis=-1), xp.nan), taken]
    for other in others:
        out.append(xp.where(taken, xp.take_along_axis(other, order, axis=-1), xp.nan))
    return tuple(out)


def largest_vectors(ritz: Any, values: Any, real: Any, vectors: int, xp: Any) -> Any:
    """Of Ritz vectors (s, k, d) those of the largest values, ascending, in columns; NaN where there is none."""
    if not vectors:
        return None
    last = xp.argsort(xp.where(real, values, -xp.inf), axis=1)[:, -vectors:, None]
    taken = xp.take_along_axis(ritz, last, 1)
    return xp.swapaxes(xp.where(xp.take_along_axis(real[:, :, None], last, 1), taken, xp.nan), 1, 2)


def unbatched(value: Any, batch: int | None) -> Any:
    """Without the leading axis s where there is a single problem."""
    return value if batch is not None or value is None else value[0]


def unbatched_all(values: tuple[Any, ...], batch: int | None, dtype: Any) -> tuple[Any, ...]:
    """The same for several, as arrays of JAX with floats of this dtype."""

    def convert(value: Any) -> Array:
        floating = jnp.issubdtype(value.dtype, jnp.floating)
        return jnp.asarray(unbatched(value, batch), dtype if floating else None)

    return tuple(None if value is None else convert(value) for value in values)
