"""Where the blocks of a map lie, of whose program only the structure is known: no number of it is needed."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from localhessian.linalg.operators import LinearMap
from localhessian.linalg.spectra import working_dtype
from localhessian.linalg.structure._block_diagonal import units
from localhessian.linalg.structure._dependence import UNKNOWN
from localhessian.linalg.structure._discover import Found

SLOWER = 4.0
"""Multiplications of a Gram matrix in the time of one of a compiled product or SVD (heuristic, from a convolution)."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Different blocks of one shape, each with its copies; entries count through all maps of a batch."""

    rows: np.ndarray
    """(blocks, copies, m): which results."""
    columns: np.ndarray
    """(blocks, copies, p): which variables."""
    kronecker: np.ndarray | None = None
    """Where the rows of a block are Kronecker products, its columns as (channels, inputs)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of one block."""
        return self.rows.shape[2], self.columns.shape[2]

    @property
    def order(self) -> int:
        """How many singular values a block has, but for zeros."""
        return min(self.shape)


@dataclasses.dataclass(frozen=True)
class Layout:
    """All blocks of a map, or of a batch of maps."""

    groups: list[Group]
    in_size: int
    out_size: int
    batch: int | None
    itemsize: int
    """Of a number of what is decomposed."""

    @property
    def splits(self) -> bool:
        """Whether it is more than one block, or less than all variables."""
        used = sum(group.columns.size for group in self.groups)
        return self._count != 1 or used < self.in_size

    @property
    def _count(self) -> int:
        return sum(group.rows[..., 0].size for group in self.groups)

    @property
    def by_columns(self) -> bool:
        """Whether the longest block has no more columns than the longest has rows: fewer products give them all."""
        longest = [max((group.shape[side] for group in self.groups), default=0) for side in (0, 1)]
        return longest[1] <= longest[0]

    @property
    def products(self) -> int:
        """How many give every block."""
        return max((group.shape[self.by_columns] for group in self.groups), default=1)

    @property
    def order(self) -> int:
        """Of the largest matrix to decompose."""
        return max((group.order for group in self.groups), default=0)

    def __str__(self) -> str:
        """In words."""
        different = sum(len(group.rows) for group in self.groups)
        return f"block diagonal: {self._count} blocks, {different} different, decomposed at order {self.order} or less"

    def operations(self) -> tuple[float, float]:
        """Of the products that give the blocks, and of the decompositions, in multiplications of Gram matrices."""
        product = sum(float(group.rows.size) * group.shape[1] for group in self.groups)
        decompose = sum(float(len(group.rows)) * group.order**2 * max(group.shape) for group in self.groups)
        return SLOWER * self.products * product, SLOWER * decompose

    def bytes(self) -> float:
        """Of memory, roughly: the products and what they are of, twice; the blocks, and a copy in float64."""
        ends = (self.in_size + self.out_size) * (self.batch or 1)
        blocks = sum(float(len(group.rows)) * group.shape[0] * group.shape[1] for group in self.groups)
        return self.itemsize * (2.0 * self.products * ends + 3 * blocks)

    def slots(self) -> tuple[np.ndarray, np.ndarray]:
        """Of every map: which singular values it has, and how often; (maps, slots).

        They are numbered group by group, block by block; after the last come the numbers of zero and of empty slots.
        """
        rows, total = [], sum(len(group.rows) * group.order for group in self.groups)
        for b in range(self.batch or 1):
            numbers, counts, start = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
            for group in self.groups:
                copies = np.sum(group.rows[..., 0] // self.out_size == b, axis=1)
                mine = np.flatnonzero(copies)
                numbers.append((start + mine[:, None] * group.order + np.arange(group.order)).ravel())
                counts.append(np.repeat(copies[mine], group.order))
                start += len(group.rows) * group.order
            zeros = self.in_size - sum(map(np.sum, counts))
            if zeros:
                numbers.append(np.array([total]))
                counts.append(np.array([zeros]))
            rows.append((np.concatenate(numbers), np.concatenate(counts)))
        longest = max(len(numbers) for numbers, _ in rows)
        padded: Callable[..., Any] = lambda part, value: np.pad(part, (0, longest - len(part)), constant_values=value)
        return (
            np.stack([padded(numbers, total + 1) for numbers, _ in rows]).astype(np.int32),
            np.stack([padded(counts, 0) for _, counts in rows]).astype(np.int32),
        )


def of_units(found: Found, prepared: LinearMap) -> Layout:
    """Of what a walk through the map kept apart; `Declined` where a variable serves several units."""
    of_element, of_variable = units(found, prepared.in_size * (prepared.batch or 1))
    coefficients = [found.output.own, *found.output.shared.values(), *(c for c, _ in found.output.single)]
    live = np.any([found.flat(coefficient) != 0 for coefficient in coefficients], axis=0)
    elements, columns = _Members(np.where(live, of_element, UNKNOWN)), _Members(of_variable)
    count = min(len(elements.sizes), len(columns.sizes))
    shapes = np.stack([elements.sizes[:count], columns.sizes[:count]], axis=1)
    there = np.flatnonzero(np.all(shapes > 0, axis=1))  # others are zero
    kinds, kind = np.unique(shapes[there], axis=0, return_inverse=True)
    groups = []
    for k, (m, p) in enumerate(kinds):
        of_kind = there[kind.ravel() == k]
        groups.append(_with_copies(found, of_kind, elements.of(of_kind, m), columns.of(of_kind, p)))
    return _of_groups(groups, prepared)


def of_maps(prepared: LinearMap, kronecker: np.ndarray | None = None) -> Layout:
    """One block for each map; `kronecker`: (channels, inputs), which variables make up rows that are products."""
    sizes = prepared.out_size, prepared.in_size
    rows, columns = (np.arange((prepared.batch or 1) * size).reshape(-1, 1, size) for size in sizes)
    return _of_groups([Group(rows, columns, kronecker)], prepared)


def _of_groups(groups: list[Group], prepared: LinearMap) -> Layout:
    itemsize = working_dtype(prepared.dtype).itemsize
    return Layout(groups, prepared.in_size, prepared.out_size, prepared.batch, itemsize)


class _Members:
    """Where each label stands, in order."""

    def __init__(self, labels: np.ndarray) -> None:
        """UNKNOWN is none."""
        known = np.flatnonzero(labels != UNKNOWN)
        self._order = known[np.argsort(labels[known], kind="stable")]
        self.sizes = np.bincount(labels[known], minlength=1)
        self._starts = np.cumsum(self.sizes) - self.sizes

    def of(self, labels: np.ndarray, size: int) -> np.ndarray:
        """Of labels that stand in `size` places each, (labels, size)."""
        return cast(np.ndarray, self._order[self._starts[labels][:, None] + np.arange(size)])


def _with_copies(found: Found, labels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Group:
    """Units of one shape, those together that are known to be equal: by numbers that are there when JAX traces."""
    output, grid = found.output, found.grid
    alone = Group(rows[:, None], columns[:, None])
    if grid is None or output.own is None or output.shared or output.single or np.any(np.isnan(output.own)):
        return alone
    own, place = found.flat(output.own)[rows], found.flat(output.place)[rows]
    _, equal, counts = np.unique(
        np.concatenate([grid.group[labels][:, None], place, own], axis=1),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    if np.any(counts != counts[0]):
        return alone
    order = np.argsort(equal.ravel(), kind="stable").reshape(-1, counts[0])
    # In the order of the product's own columns, which equal units share.
    return Group(rows[order], grid.entries[labels][order])
