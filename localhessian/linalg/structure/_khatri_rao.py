"""H = sum over rows of (a a^T) x (g g^T): rows that are Kronecker products, as of the last block with a softmax."""

import math
from collections.abc import Iterator
from typing import cast

import numpy as np

from localhessian._blas import threads_that_pay
from localhessian._tree import pytree
from localhessian._types import Array
from localhessian.linalg.operators import LinearMap
from localhessian.linalg.structure._dependence import UNKNOWN, Declined, TooLarge
from localhessian.linalg.structure._discover import Found, members
from localhessian.linalg.structure._mixing import Grid
from localhessian.linalg.structure._unit import Part, gram_of_rows, roots, squares_of, syrk


def only_product(found: Found, max_bytes: float, max_size: float) -> Grid:
    """The product, where places of it are kept apart, so that rows are Kronecker products; no number is needed.

    Raises:
        Declined: single variables enter beside the product, its kernel is grouped, or the rows take more than
            `max_bytes`.
        TooLarge: all but one row of each place, as of a softmax, make a matrix beyond `max_size`.
    """
    output, grid = found.output, found.grid
    if grid is None or len(grid.inputs) != 1 or output.single or np.any(output.unit == UNKNOWN):
        raise Declined("it mixes channels, and more than one product enters")
    needed = 8.0 * output.unit.size * grid.channels
    if needed > max_bytes:
        raise Declined(f"it mixes channels, and rows of all channels take {needed / 2**30:.2g} GiB")
    rows = int(np.sum(np.maximum(np.minimum(np.bincount(found.flat(output.unit)), grid.channels) - 1, 0)))
    order = min(rows, grid.inputs[0].shape[1] * grid.channels)
    if order > max_size:  # before the rows of every place are decomposed
        raise TooLarge(f"it has one (Khatri-Rao), but `max_size` = {max_size:.3g} is less than the {order:.3g} needed")
    return grid


class KhatriRao:
    """Places of u apart, channels mixed; decomposed on the smaller side, rows or variables, as one piece."""

    visits: float = 0.0
    """How often it is looked for again when it is decomposed."""
    blocks = ((1, 0),)
    pieces = workers = 1

    def __init__(self, found: Found, size: int, eps: float, max_bytes: float, max_size: float) -> None:
        """Collect the rows g of every place, made independent up to `eps`; `Declined` as by `only_product`."""
        output, grid = found.output, only_product(found, max_bytes, max_size)
        self.size, place_of = size, found.flat(output.unit)
        mixing = np.zeros((len(place_of), grid.channels))
        mixing[np.arange(len(mixing)), found.flat(output.place)] = found.flat(output.own)
        for k, coefficient in output.shared.items():
            mixing += found.flat(coefficient)[:, None] * found.sums[k][place_of]
        self.places, self.mixing = _independent_rows(place_of, mixing, eps)
        self.grids, self.inputs = [grid], grid.inputs[0]
        self.shape = len(self.places), self.inputs.shape[1] * grid.channels
        """Of R, its rows made independent at each place."""
        self.order = min(self.shape)
        """Of the matrix to decompose."""
        self.splits = grid.channels > 1

    def __str__(self) -> str:
        """In words."""
        rows, columns = self.shape
        return f"Khatri-Rao: {rows} rows a x g of {columns} variables, decomposed at order {self.order}"

    def operations(self) -> tuple[float, float]:
        """Multiplications of the Gram matrix, and of the decomposition."""
        rows, columns = self.shape
        widths = self.inputs.shape[1] + self.mixing.shape[1]
        gram = float(rows) ** 2 * widths if rows < columns else float(columns) ** 2 * rows
        return gram, 4 / 3 * float(self.order) ** 3

    def bytes(self) -> float:
        """Of memory, roughly."""
        return self.inputs.nbytes + self.mixing.nbytes + 24.0 * self.order**2

    def parts(self, is_double: bool) -> Iterator[Part]:
        """The one spectrum."""
        sigma = np.zeros(self.shape[1])
        with threads_that_pay(math.prod(self.shape)):
            small = self._rows(0, len(self.places)) if is_double else self._gram()
            found = np.linalg.svd(small, compute_uv=False)[::-1] if is_double else roots(small)
        sigma[len(sigma) - len(found) :] = found
        yield Part(sigma, 1, 0)

    def squares(self) -> np.ndarray:
        """tr H and ||H||_F^2, (1, 2), without a decomposition."""
        return np.array([squares_of(self._gram())])

    def maps(self, prepared: LinearMap) -> LinearMap:
        """The one block, as a batch."""
        return _AsBatch(prepared, **prepared.form | {"batch": 1})

    def _rows(self, start: int, stop: int) -> np.ndarray:
        left = self.inputs.take(self.places[start:stop])
        return cast(np.ndarray, (left[:, :, None] * self.mixing[start:stop, None, :]).reshape(len(left), self.shape[1]))

    def _gram(self) -> np.ndarray:
        rows, columns = self.shape
        if rows >= columns:
            return gram_of_rows(self._rows, rows, columns)
        return cast(np.ndarray, syrk(self.inputs.take(self.places)) * syrk(self.mixing))


@pytree
class _AsBatch(LinearMap):
    """A single map as a batch of one."""

    whole: LinearMap

    def product(self, v: Array, /) -> Array:
        """(1, d) -> (1, m)."""
        return self.whole.product(v[0])[None]

    def transpose_product(self, u: Array, /) -> Array:
        """(1, m) -> (1, d)."""
        return self.whole.transpose_product(u[0])[None]


def _independent_rows(place_of: np.ndarray, mixing: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """As few rows of each place with the same Gram matrix: L^T of a softmax has a null direction."""
    places, rows = [], []
    for place, elements in members(place_of).items():
        _, sigma, right = np.linalg.svd(mixing[elements], full_matrices=False)
        kept = sigma > eps * sigma[0]
        rows.append(sigma[kept, None] * right[kept])
        places.append(np.full(len(rows[-1]), place))
    return np.concatenate(places), np.concatenate(rows)
