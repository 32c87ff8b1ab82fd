"""What the two ways to run do differently: NumPy on the host around compiled products, or one traced program.

All else is written once, for arrays of either kind, with the array functions of `on.xp`. Vectors carry a leading axis
`s` of independent problems (s = 1 for a single one), and a block an axis `p`; a basis is `(s, rows, d)`.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._types import Key
from localhessian.linalg.operators import rows_of


class Arithmetic:
    """Arrays, and how they are changed in a program, whose numbers come when it runs: masks say which rows count."""

    xp: Any = jnp
    """numpy or jax.numpy."""

    def held(self, tree: Any) -> Any:
        """The same numbers, as constants to derivatives."""
        return jax.lax.stop_gradient(tree)

    def random(self, key: Key, shape: tuple[int, ...], dtype: Any) -> Any:
        """Normal random numbers."""
        return jax.random.normal(key, shape, dtype)

    def multiply(self, a: Any, b: Any) -> Any:
        """A matrix product in full precision, also on GPUs and TPUs."""
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def lengths(self, vectors: Any) -> Any:
        """Euclidean norms along the last axis, also of numbers whose squares overflow or vanish."""
        return _scaled_lengths(vectors, jnp)

    def pick(self, array: Any, places: Any) -> Any:
        """The entries (s, k) of an array (s, K)."""
        return jnp.take_along_axis(array, places, 1)

    def subtract(self, block: Any, part: Any) -> Any:
        """block - part; `part` may be overwritten."""
        return block - part

    def put_rows(self, basis: Any, row: Any, block: Any) -> Any:
        """The basis with the rows from `row` on replaced; it may be overwritten."""
        return jax.lax.dynamic_update_slice_in_dim(basis, block.astype(basis.dtype), row, 1)

    def add_rows(self, matrix: Any, place: slice, block: Any) -> Any:
        """The matrix with a block added to the rows of a slice; it may be overwritten."""
        return matrix.at[:, place].add(block)

    def take_rows(self, matrix: Any, row: Any, count: int) -> Any:
        """The rows from `row` on."""
        return jax.lax.dynamic_slice_in_dim(matrix, row, count, 1)

    def replace_rows(self, basis: Any, block: Any) -> Any:
        """A basis that begins with the block, and of which nothing else is in use; it may be overwritten."""
        return jnp.zeros_like(basis).at[:, : block.shape[1]].set(block)

    def in_use(self, row: Any, size: int) -> int:
        """How many rows of `size` need be looked at, `row` of which hold something: all, the others are zero."""
        del row
        return size

    def near(self, row: Any, before: int, after: int, kept: int) -> slice:
        """The rows from `before` the current one to `after` it, where a product's components lie; at least those.

        After a restart, of which `kept` rows are left, they lie along all.
        """
        del row, before, after, kept
        return slice(None)

    def counter(self, value: int) -> Any:
        """A number that steps change."""
        return jnp.asarray(value, np.int32)

    def small(self, dtype: Any) -> Any:
        """The type of small matrices, of bases of `dtype`."""
        return dtype

    def surely(self, mask: Any) -> bool:
        """Whether it is known to hold everywhere; a program does not know its numbers."""
        del mask
        return False

    def if_any(self, mask: Any, function: Callable[[], Any], otherwise: Any) -> Any:
        """function() where the mask holds anywhere, else what was."""
        return jax.lax.cond(jnp.any(mask), function, lambda: otherwise)

    def products(self, product: Callable[..., Any], block: Any, batch: int | None, dtype: Any) -> Any:
        """Products with a block `(s, p, d)`; `product` works in `dtype`, the operator's own, the block in a wider."""
        apply = rows_of(product, batch)
        if block.shape[1] == 1:
            return apply(block[:, 0].astype(dtype)).astype(block.dtype)[:, None]
        return jax.vmap(apply, in_axes=1, out_axes=1)(block.astype(dtype)).astype(block.dtype)


class _Host(Arithmetic):
    """Numbers are at hand: nothing is computed that is not needed, arrays are changed in place, nothing compiles."""

    xp: Any = np

    def held(self, tree: Any) -> Any:
        return tree

    def random(self, key: Key, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """By NumPy, so that no shape needs a program."""
        seed = np.ravel(np.asarray(jax.random.key_data(key))).tolist()
        return np.random.default_rng(seed).standard_normal(shape, dtype)

    def multiply(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, np.matmul(a, b))

    def lengths(self, vectors: np.ndarray) -> Any:
        """In one pass over the numbers, unless that shows that squares overflow or vanish."""
        squares, small = np.vecdot(vectors, vectors), _small(vectors.dtype)
        if ((squares > small) & (squares < 1 / small)).all():
            return np.sqrt(squares)
        return _scaled_lengths(vectors, np)

    def pick(self, array: np.ndarray, places: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, array[np.arange(len(array))[:, None], places])

    def subtract(self, block: np.ndarray, part: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, np.subtract(block, part, out=part))

    def put_rows(self, basis: np.ndarray, row: int, block: np.ndarray) -> np.ndarray:
        basis[:, row : row + block.shape[1]] = block
        return basis

    def add_rows(self, matrix: np.ndarray, place: slice, block: np.ndarray) -> np.ndarray:
        matrix[:, place] += block
        return matrix

    def take_rows(self, matrix: np.ndarray, row: int, count: int) -> np.ndarray:
        return matrix[:, row : row + count]

    def replace_rows(self, basis: np.ndarray, block: np.ndarray) -> np.ndarray:
        """In place; what stands after it is not in use."""
        return self.put_rows(basis, 0, block)

    def in_use(self, row: int, size: int) -> int:
        del size
        return row

    def near(self, row: int, before: int, after: int, kept: int) -> slice:
        return slice(None) if row <= kept else slice(max(row - before, 0), row + after)

    def counter(self, value: int) -> int:
        return value

    def small(self, dtype: Any) -> Any:
        """float64, where that costs nothing."""
        del dtype
        return np.dtype(np.float64)

    def surely(self, mask: Any) -> bool:
        return bool(np.all(mask))

    def if_any(self, mask: np.ndarray, function: Callable[[], Any], otherwise: Any) -> Any:
        return function() if mask.any() else otherwise

    def products(self, product: Callable[..., Any], block: np.ndarray, batch: int | None, dtype: Any) -> np.ndarray:
        """One after another: one program serves every block size, and p products need no p-fold memory."""
        columns = [self._product(product, block[:, j], batch, dtype)[:, None] for j in range(block.shape[1])]
        return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)

    @staticmethod
    def _product(product: Callable[..., Any], v: np.ndarray, batch: int | None, dtype: Any) -> np.ndarray:
        """Of one vector (s, d); outside of the product nothing is done by JAX, which takes its time."""
        given = v.astype(dtype, copy=False)
        out = np.asarray(product(given[0]))[None] if batch is None else np.asarray(product(given))
        return out.astype(v.dtype, copy=False)


HOST: Arithmetic = _Host()
TRACED = Arithmetic()


@functools.cache
def _small(dtype: Any) -> float:
    """A sum of squares above this has lost nothing to underflow, of up to 1e8 numbers."""
    return float(float(np.finfo(dtype).tiny) ** 0.6)


def _scaled_lengths(vectors: Any, xp: Any) -> Any:
    largest = xp.max(xp.abs(vectors), axis=-1)
    unit = xp.where((largest > 0) & xp.isfinite(largest), largest, 1)
    return unit * xp.linalg.norm(vectors / unit[..., None], axis=-1)
