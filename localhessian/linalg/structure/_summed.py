"""Blocks of a sum over a stream: the same in every part, each summed in float64 as the parts come."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from localhessian.linalg.operators import LinearMap, Streamed, triangle_of
from localhessian.linalg.structure._block_diagonal import BlockDiagonal
from localhessian.linalg.structure._dependence import Declined
from localhessian.linalg.structure._threads import cores, in_parallel
from localhessian.linalg.structure._unit import Part, Unit, gram_of_rows, roots

Walk = Callable[[LinearMap, bool], BlockDiagonal]
"""The blocks of a prepared map, verified; True: equal ones apart."""


class Summed:
    """H = w_1 H_1 + .., each H_i block diagonal by the channels of one layer.

    Equal blocks (a layer without an activation) are one where they are so in every part. Where the Gram matrices of all
    blocks do not fit, the parts are gone through once for each group that does.
    """

    maps: None = None
    blocks: tuple[()] = ()
    grids: tuple[()] = ()

    def __init__(self, operator: Streamed, walk: Walk, max_bytes: float) -> None:
        """Look at the first part; `Declined` where it does not split by the channels of a layer."""
        self.operator, self.walk = operator, walk
        self.size = operator.size
        share, part = next(operator.parts())
        first = _blocks(part.factor, walk, apart=False)
        self.equal = len(first.units) == 1 and first.count == first.grids[0].channels
        first = first if self.equal else _blocks(part.factor, walk, apart=True)
        self._of_first = [unit.shape for unit in first.units]
        self._shared, self._share = first.bytes(), share
        self.channels = [int(entry) for entry in first.grids[0].entries[:, 0]]
        self.splits = len(self.channels) > 1
        self.order = max((p for _, p in self._of_first), default=0)
        self.count, self.workers = len(self.channels), cores()
        self.pieces = 1 if self.equal else self.count
        held = 1 if self.equal else max(int(max_bytes / 2 // max(8 * self.order**2, 1)), 1)
        channels = iter(self.channels[: self.pieces])
        self._groups = list(iter(lambda: list(itertools.islice(channels, held)), []))
        self.passes = len(self._groups)
        """How often the data is gone through."""
        self.visits = self.passes / share
        """How many parts are looked at."""

    def __str__(self) -> str:
        """In words."""
        same = "all equal" if self.equal else f"{self.count} different"
        times = "" if self.passes == 1 else f" in {self.passes} passes"
        return f"block diagonal: {self.count} blocks, {same}, of order {self.order} or less, summed over batches{times}"

    def operations(self) -> tuple[float, float]:
        """Multiplications of the Gram matrices, and of the decompositions."""
        gram = sum(float(m) * p**2 for m, p in self._of_first) / self._share
        return gram, sum(4 / 3 * float(p) ** 3 for _, p in self._of_first)

    def bytes(self) -> float:
        """Of memory, roughly: what a part takes, and the sums."""
        return self._shared + 8.0 * self.order**2 * (max(map(len, self._groups), default=0) + 2 * self.workers)

    def parts(self, is_double: bool) -> Iterator[Part]:
        """The spectrum of every block."""
        for group in self._groups:
            sums = {channel: _Sum(is_double) for channel in group}
            for weight, part in self.operator.parts():
                blocks = _blocks(part.factor, self.walk, apart=not self.equal)
                if self.equal and (len(blocks.units) != 1 or blocks.count != self.count):
                    raise Declined("blocks of its parts that were equal are not in another part")
                mine = [unit for unit in blocks.units if len(unit.variables) and int(unit.variables[0]) in sums]
                add = lambda unit, weight=weight, sums=sums: sums[int(unit.variables[0])].add(unit, weight)
                for _ in in_parallel(add, mine, self.workers):
                    pass
            copies = self.count if self.equal else 1
            for found in in_parallel(_Sum.singular_values, sums.values(), self.workers):
                yield Part(found, copies, 0)

    def squares(self) -> np.ndarray:
        """tr H and ||H||_F^2, (1, 2)."""
        values = [(part.singular_values**2, part.copies) for part in self.parts(False)]
        return np.array([[sum(c * v.sum() for v, c in values), sum(c * (v**2).sum() for v, c in values)]])


def _blocks(factor: LinearMap | None, walk: Walk, *, apart: bool) -> BlockDiagonal:
    if factor is None:
        raise Declined("its parts have no factor R with H = R^T R")
    found = walk(factor.prepare(), apart)
    if len(found.grids) != 1 or found.small:
        raise Declined("its parts do not split by the channels of a layer, so that their blocks differ")
    return found


@dataclasses.dataclass
class _Sum:
    """Of one block: the upper triangle of w_1 R_1^T R_1 + .., or of numbers in float64 the R with that square."""

    is_double: bool
    variables: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    held: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, unit: Unit, weight: float) -> None:
        """One more part."""
        m, p = unit.shape
        if not len(self.variables):
            self.variables, self.held = unit.variables, np.zeros((0 if self.is_double else p, p))
        at = self._places(unit.variables)
        if not self.is_double:
            upper = weight * gram_of_rows(unit.rows, m, p)
            self.held += upper if np.array_equal(unit.variables, self.variables) else _moved(upper, at, len(self.held))
            return
        rows = np.zeros((m, self.held.shape[1]))
        rows[:, at] = weight**0.5 * unit.rows()
        held = np.concatenate([self.held, rows])
        self.held = triangle_of(held) if len(held) > held.shape[1] else held

    def _places(self, variables: np.ndarray) -> np.ndarray:
        """Where they stand; what was not met before is appended."""
        known, held = self.variables, self.held
        if np.array_equal(known, variables):
            return np.arange(len(variables))
        new = np.setdiff1d(variables, known)
        self.variables = known = np.concatenate([known, new])
        self.held = np.pad(held, ((0, 0 if self.is_double else len(new)), (0, len(new))))
        order = np.argsort(known)
        return order[np.searchsorted(known, variables, sorter=order)]

    def singular_values(self) -> np.ndarray:
        """Ascending, as many as it has variables."""
        if not self.held.shape[1]:
            return np.zeros(0)
        if not self.is_double:
            return roots(np.asfortranarray(self.held))
        found = np.linalg.svd(self.held, compute_uv=False)[::-1]
        return np.concatenate([np.zeros(self.held.shape[1] - len(found)), found])


def _moved(upper: np.ndarray, at: np.ndarray, size: int) -> np.ndarray:
    """A symmetric matrix at some places of a larger one; both by their upper triangles."""
    whole = np.zeros((size, size))
    whole[np.ix_(at, at)] = np.triu(upper) + np.triu(upper, 1).T
    return np.triu(whole)
