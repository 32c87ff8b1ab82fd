"""Units of a few rows and variables, by the hundred thousand: stacks of equal shape, without an object for each."""

import dataclasses
from collections.abc import Iterator
from typing import cast

import numpy as np
from scipy import sparse

from localhessian.linalg.structure._unit import Part, roots

MOST = 1024
"""Rows times variables of a unit that is held in full."""
STACK_BYTES = 2**24
"""Of matrices that are decomposed by one call."""


@dataclasses.dataclass(frozen=True)
class Stack:
    """Different blocks of one shape, in full; of a single row or column only the norm is held."""

    rows: np.ndarray
    """(blocks, m, p)."""
    copies: np.ndarray
    """(blocks,): how many equal ones there are of each."""
    batch: int
    """To which of a batch of maps they belong."""

    @property
    def order(self) -> int:
        """Of the matrices to decompose."""
        return int(min(self.rows.shape[1:]))

    def operations(self) -> tuple[float, float]:
        """Multiplications of the Gram matrices, and of the decompositions."""
        decompose = 4 / 3 * float(self.order) ** 3 if self.order > 1 else 0.0
        return float(self.rows.size) * self.order, len(self.rows) * decompose

    def split(self) -> "Iterator[Stack]":
        """A few megabytes each."""
        step = max(STACK_BYTES // max(8 * self.rows[:1].size, 1), 1)
        for start in range(0, len(self.rows), step):
            some = slice(start, start + step)
            yield Stack(self.rows[some], self.copies[some], self.batch)

    def part(self, is_double: bool) -> Part:
        """The spectra, but for zeros of the longer side."""
        if self.order == 1:
            sigma = np.sqrt(np.sum(self.rows**2, axis=(1, 2)))[:, None]
        elif is_double:
            sigma = np.linalg.svd(self.rows, compute_uv=False)
        else:
            sigma = roots(self._grams())
        return Part(sigma.ravel(), np.repeat(self.copies, self.order), self.batch)

    def squares(self) -> np.ndarray:
        """tr H and ||H||_F^2, copies counted."""
        traces = np.sum(self.rows**2, axis=(1, 2))
        norms = np.sum(self._grams() ** 2, axis=(1, 2))
        return np.array([self.copies @ traces, self.copies @ norms])

    def _grams(self) -> np.ndarray:
        short = self.rows if self.rows.shape[1] <= self.rows.shape[2] else self.rows.swapaxes(1, 2)
        return cast(np.ndarray, short @ short.swapaxes(1, 2))


@dataclasses.dataclass(frozen=True)
class Components:
    """A sparse matrix whose rows and columns have the number of the unit that they belong to."""

    matrix: sparse.coo_matrix
    """Of all maps of a batch, each entry once; every row that it has an entry of is of a known unit."""
    unit_of_row: np.ndarray
    unit_of_column: np.ndarray
    """Negative: of none."""
    batch: int

    def stacks(self) -> tuple[list[Stack], np.ndarray, np.ndarray]:
        """The small units; how many variables they have in each map; which of all units they are."""
        matrix = self.matrix
        live = np.zeros(matrix.shape[0], bool)
        live[matrix.row] = True
        at = np.flatnonzero(live)
        count = max(self.unit_of_row.max(initial=-1), self.unit_of_column.max(initial=-1)) + 1
        rows = np.bincount(self.unit_of_row[at], minlength=count)
        columns = np.bincount(self.unit_of_column[self.unit_of_column >= 0], minlength=count)
        map_of = np.zeros(count, np.int64)
        map_of[self.unit_of_row[at]] = at // max(matrix.shape[0] // self.batch, 1)
        thin = (rows > 0) & (np.minimum(rows, columns) == 1)
        full = (rows > 0) & ~thin & (rows * columns <= MOST)
        taken = thin | full
        variables = np.bincount(map_of[taken], columns[taken], self.batch).astype(np.int64)
        return [*self._thin(thin, map_of), *self._full(full, map_of, rows, columns)], variables, taken

    def _thin(self, which: np.ndarray, map_of: np.ndarray) -> Iterator[Stack]:
        """Units of one row or one column."""
        squares = np.bincount(self.unit_of_row[self.matrix.row], self.matrix.data**2, minlength=len(which))
        for b in range(self.batch):
            norms, copies = np.unique(np.sqrt(squares[which & (map_of == b)]), return_counts=True)
            if len(norms):
                yield Stack(norms[:, None, None], copies, b)

    def _full(self, which: np.ndarray, map_of: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Iterator[Stack]:
        """Units of several rows and columns, those of one shape together."""
        unit = self.unit_of_row[self.matrix.row]
        some = which[unit]
        unit, data = unit[some], self.matrix.data[some]
        if not len(unit):
            return
        row, column = _within(self.matrix.row[some], unit), _within(self.matrix.col[some], unit)
        shape = np.stack([map_of, rows, columns], axis=1)
        shapes, kind = np.unique(shape[which], axis=0, return_inverse=True)
        kind_of, place = np.zeros(len(which), np.int64), np.zeros(len(which), np.int64)
        kind_of[which] = kind.ravel()
        place[which] = _count_within(kind.ravel())
        by_kind = np.argsort(kind_of[unit], kind="stable")
        ends = np.cumsum(np.bincount(kind_of[unit], minlength=len(shapes)))
        for (b, m, p), number, entries in zip(
            shapes, np.bincount(kind.ravel()), np.split(by_kind, ends[:-1]), strict=True
        ):
            full = np.zeros((number, m, p))
            full[place[unit[entries]], row[entries], column[entries]] = data[entries]
            yield Stack(*_different(full), int(b))


def _within(index: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """The place of each index among the different ones of its unit."""
    index = np.unique(index, return_inverse=True)[1]
    unit_of = np.zeros(index.max() + 1, np.int64)
    unit_of[index] = unit
    return _count_within(unit_of)[index]


def _count_within(labels: np.ndarray) -> np.ndarray:
    """How many of the same label came before."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place


def _different(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal blocks once, with their number."""
    flat = blocks.reshape(len(blocks), -1)
    as_bytes = flat.view(np.dtype((np.void, flat.shape[1] * flat.itemsize))).ravel()
    _, first, copies = np.unique(as_bytes, return_index=True, return_counts=True)
    return blocks[first], copies
