"""H = R^T R as a direct sum of blocks: channels, samples or features that share no variable.

The Kronecker product I x C of an affine layer is the case in which all blocks are equal: they are held once.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from localhessian._tree import pytree
from localhessian._types import Array
from localhessian.linalg.operators import LinearMap
from localhessian.linalg.structure._dependence import UNKNOWN, Declined
from localhessian.linalg.structure._discover import Found, members
from localhessian.linalg.structure._inputs import CHUNK, Inputs
from localhessian.linalg.structure._mixing import Grid
from localhessian.linalg.structure._small_units import STACK_BYTES, Components, Stack
from localhessian.linalg.structure._threads import cores, in_parallel
from localhessian.linalg.structure._unit import Entries, Part, Unit, singular_values, squares_of, syrk


class BlockDiagonal:
    """Each unit has variables of its own; equal units are held once, with their number.

    Small units, of which a layer without parameters has hundreds of thousands, are no objects, but stacks.
    """

    visits: float = 0.0
    """How often it is looked for again when it is decomposed."""

    def __init__(
        self,
        found: Found,
        size: int,
        batch: int | None,
        max_bytes: float,
        every_unit: bool = False,
        apart: bool = False,
    ) -> None:
        """Sort what was found by unit; as many are decomposed side by side as `max_bytes` allows.

        Args:
            found: By the walk.
            size: Columns of each map.
            batch: Of maps; None for one.
            max_bytes: Of memory.
            every_unit: Whether each unit must be an object, to be multiplied.
            apart: Whether equal units are held one by one.

        Raises:
            Declined: a variable serves several units.
        """
        self.found, self.size, self.batch, self.max_bytes = found, size, batch, max_bytes
        self.unit_of_element, self.unit_of_variable = units(found, size * (batch or 1))
        self.small: list[Stack] = []
        columns = np.zeros(batch or 1, np.int64)
        if found.grid is None and not every_unit:
            self.small, columns = self._small_units()
        self.units = self._make_units(apart)
        for unit in self.units:
            columns[unit.batch] += unit.copies * unit.shape[1]
        if np.any(columns > size):
            raise Declined("one variable serves several units")

    @property
    def grids(self) -> list[Grid]:
        """The product in which its variables meet constants, if there is one."""
        return [] if self.found.grid is None else [self.found.grid]

    def _small_units(self) -> tuple[list[Stack], np.ndarray]:
        """The small units, and how many variables they have in each map; they are taken out."""
        components = Components(self._matrix(), self.unit_of_element, self.unit_of_variable, self.batch or 1)
        stacks, columns, taken = components.stacks()
        for labels in (self.unit_of_element, self.unit_of_variable):
            known = np.flatnonzero(labels != UNKNOWN)
            labels[known[taken[labels[known]]]] = UNKNOWN
        return stacks, columns

    def _matrix(self) -> sparse.coo_matrix:
        """R of all maps, without a product: an entry for each variable of each result."""
        single = self.found.output.single
        live = [np.flatnonzero(self.found.flat(coefficient)) for coefficient, _ in single]
        values = [self.found.flat(c)[rows].astype(np.float64) for (c, _), rows in zip(single, live, strict=True)]
        columns = [self.found.flat(entry)[rows] for (_, entry), rows in zip(single, live, strict=True)]
        shape = len(self.unit_of_element), len(self.unit_of_variable)
        joined = [np.concatenate([np.zeros(0, np.int64), *parts]) for parts in (live, columns)]
        matrix = sparse.coo_matrix((np.concatenate([np.zeros(0), *values]), tuple(joined)), shape)
        if len(single) > 1:
            matrix.sum_duplicates()
        return matrix

    def _make_units(self, apart: bool) -> list[Unit]:
        found, output = self.found, self.found.output
        own, place = (found.flat(field) for field in (output.own, output.place))
        shared = [found.flat(coefficient) for coefficient in output.shared.values()]
        single = [(found.flat(coefficient), found.flat(entry)) for coefficient, entry in output.single]
        variables_of = members(self.unit_of_variable)
        inputs_of = [Inputs(np.zeros((1, 0), np.float32), 1)] if found.grid is None else found.grid.inputs
        weights_of, sums_of = self._sums()
        made: list[Unit] = []
        merges, seen = not (shared or apart), dict[tuple[Any, ...], int]()
        live = np.zeros(len(own), bool)
        for coefficient in (own, *shared, *(coefficient for coefficient, _ in single)):
            live |= coefficient != 0
        for u, every in members(self.unit_of_element).items():
            elements = every[live[every]]
            batch = int(every[0]) // (len(own) // (self.batch or 1))
            first = np.zeros(0, np.int64) if found.grid is None else found.grid.entries[u]
            others = len(variables_of[u]) > len(first)
            columns = np.concatenate([first, np.setdiff1d(variables_of[u], first)]) if others else first
            beside = _single(elements, single, columns)
            group = 0 if found.grid is None else int(found.grid.group[u])
            parts = (own[elements], place[elements], *itertools.chain.from_iterable(beside))
            key = (group, batch, len(columns), *(part.tobytes() for part in parts)) if merges else (u,)
            if key in seen:
                twin = made[seen[key]]
                made[seen[key]] = dataclasses.replace(twin, copies=twin.copies + 1)
                continue
            seen[key] = len(made)
            made.append(
                Unit(
                    inputs_of[group],
                    own[elements].astype(np.float64),
                    place[elements],
                    np.stack([s[elements] for s in shared], 1).astype(np.float64) if shared else np.zeros((0, 0)),
                    weights_of[u] if shared else np.zeros((0, 0)),
                    sums_of[u] if shared else np.zeros((0, 0)),
                    beside,
                    elements,
                    columns,
                    1,
                    batch,
                )
            )
        return made

    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights of the sums of every unit, (units, sums, places), and what they make of A, (units, sums, d)."""
        grid, shared = self.found.grid, self.found.output.shared
        if grid is None or not shared:
            return np.zeros((0, 0, 0)), np.zeros((0, 0, 0))
        weights = np.stack([self.found.sums[k] for k in shared], axis=1)
        sums = np.empty((*weights.shape[:2], grid.inputs[0].shape[1]))
        for group, inputs in enumerate(grid.inputs):
            mine = weights[grid.group == group]
            sums[grid.group == group] = inputs.combined(mine.reshape(-1, mine.shape[2])).reshape(*mine.shape[:2], -1)
        return weights, sums

    @property
    def count(self) -> int:
        """Blocks, copies counted."""
        return sum(unit.copies for unit in self.units) + sum(int(stack.copies.sum()) for stack in self.small)

    @property
    def different(self) -> int:
        """Blocks, equal ones counted once."""
        return len(self.units) + sum(len(stack.rows) for stack in self.small)

    @property
    def pieces(self) -> int:
        """How many parts the spectrum comes in."""
        return len(self.units) + len(self._small_pieces)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Of every different block but the small: how many equal ones there are, and to which map they belong."""
        return [(unit.copies, unit.batch) for unit in self.units]

    @property
    def splits(self) -> bool:
        """Whether it is more than one block, or none at all: a layer that passes nothing on."""
        return self.count != 1 or bool(self.small) or (bool(self.units) and self.units[0].shape[1] < self.size)

    @property
    def order(self) -> int:
        """Of the largest matrix to decompose."""
        return max([0, *(unit.order for unit in self.units), *(stack.order for stack in self.small)])

    def __str__(self) -> str:
        """In words."""
        if not self.count:
            return "zero: no result depends on a variable"
        same = "all equal" if self.different == 1 else f"{self.different} different"
        return f"block diagonal: {self.count} blocks, {same}, decomposed at order {self.order} or less"

    @functools.cached_property
    def _small_pieces(self) -> list[Stack]:
        return [piece for stack in self.small for piece in stack.split()]

    @functools.cached_property
    def _inputs(self) -> list[tuple[Inputs, bool]]:
        """Every A, with whether one A A^T for all its units is less work than a Gram matrix for each."""
        found = []
        for inputs in {id(unit.inputs): unit.inputs for unit in self.units}.values():
            duals = [u for u in self.units if u.inputs is inputs and u.shape[0] < u.shape[1] and u.is_separate]
            found.append((inputs, sum(u.shape[0] ** 2 for u in duals) > inputs.shape[0] ** 2))
        return found

    @functools.cached_property
    def _grams(self) -> dict[int, np.ndarray]:
        made = {}
        for inputs, pays in self._inputs:
            if pays:
                upper = syrk(inputs.take(slice(None)))
                made[id(inputs)] = np.triu(upper) + np.triu(upper, 1).T
        return made

    def operations(self) -> tuple[float, float]:
        """Multiplications of the Gram matrices, and of the decompositions."""
        gram, at_hand = 0.0, set()
        for inputs, pays in self._inputs:
            if pays:
                at_hand.add(id(inputs))
                gram += float(inputs.shape[0]) ** 2 * inputs.shape[1]
        gram += sum(float(u.order) * u.shape[0] * u.shape[1] for u in self.units if id(u.inputs) not in at_hand)
        decompose = sum(4 / 3 * float(unit.order) ** 3 for unit in self.units)
        both = np.sum([(gram, decompose), *(stack.operations() for stack in self.small)], axis=0)
        return float(both[0]), float(both[1])

    @functools.cached_property
    def _bytes(self) -> tuple[float, float]:
        """Of memory, roughly: what all units share, and what the decomposition of some takes."""
        shared = sum(inputs.nbytes + pays * 16.0 * inputs.shape[0] ** 2 for inputs, pays in self._inputs)
        shared += sum(stack.rows.nbytes for stack in self.small)
        rows = max((8.0 * min(CHUNK, u.shape[0]) * u.shape[1] for u in self.units), default=0.0)
        stack = max((8.0 * sum(u.order**2 for u in units) for units in _stacks(self.units, 1)), default=0.0)
        return shared, rows + 2 * stack

    @property
    def workers(self) -> int:
        """How many cores to use."""
        shared, one = self._bytes
        return max(min(cores(), int((self.max_bytes - shared) // max(one, 1.0))), 1)

    def bytes(self) -> float:
        """Of memory, roughly."""
        shared, one = self._bytes
        return shared + self.workers * one

    def parts(self, is_double: bool) -> Iterator[Part]:
        """The spectrum of every different block: blocks of one shape together, on every core."""
        yield from in_parallel(lambda piece: piece.part(is_double), self._small_pieces, self.workers)
        grams = self._grams  # made once, before threads ask for it
        stacks = list(_stacks(self.units, self.workers))

        def work(units: list[Unit]) -> np.ndarray:
            return singular_values(units, grams.get(id(units[0].inputs)), is_double)

        for units, found in zip(stacks, in_parallel(work, stacks, self.workers), strict=True):
            for unit, sigma in zip(units, found, strict=True):
                yield Part(sigma, unit.copies, unit.batch)

    def squares(self) -> np.ndarray:
        """tr H and ||H||_F^2 of each map, (batch, 2), without a decomposition."""
        grams, total = self._grams, np.zeros((self.batch or 1, 2))
        for piece in self._small_pieces:
            total[piece.batch] += piece.squares()

        def work(unit: Unit) -> np.ndarray:
            return unit.copies * np.array(squares_of(unit.gram(grams.get(id(unit.inputs)))))

        for unit, found in zip(self.units, in_parallel(work, self.units, self.workers), strict=True):
            total[unit.batch] += found
        return total

    def maps(self, prepared: LinearMap) -> LinearMap:
        """The different blocks as a batch, multiplied by one product of the whole; short ones are padded by zeros.

        Args:
            prepared: The map in which the structure was found.
        """
        entries = [u.variables for u in self.units], [u.elements for u in self.units]
        # Numbers that are out of range: what is sent there is dropped, what is taken from there is 0.
        ends = (self.size * (self.batch or 1), prepared.out_size * (self.batch or 1))
        columns, rows = (_padded(some, end) for some, end in zip(entries, ends, strict=True))
        m, p = rows.shape[1], columns.shape[1]
        return _Blocks(prepared, rows, columns, size=p, out_size=m, dtype=prepared.dtype, batch=len(self.units))


@pytree
class _Blocks(LinearMap):
    """The blocks of a map as a batch; vectors of blocks, (units, p), to vectors of blocks, (units, m)."""

    whole: LinearMap
    rows: Array
    """(units, m): which results each block has; numbers out of range pad."""
    columns: Array
    """(units, p): and which variables."""

    def product(self, v: Array, /) -> Array:
        """R_j v_j of each."""
        return self._through(self.whole, self.columns, self.rows, v)

    def transpose_product(self, u: Array, /) -> Array:
        """R_j^T u_j of each."""
        return self._through(self.whole.T, self.rows, self.columns, u)

    @staticmethod
    def _through(whole: LinearMap, source: Array, target: Array, vectors: Array) -> Array:
        shape = (whole.size,) if whole.batch is None else (whole.batch, whole.size)
        laid_out = jnp.zeros(math.prod(shape), vectors.dtype).at[source].set(vectors, mode="drop")
        return whole.product(laid_out.reshape(shape)).ravel().at[target].get(mode="fill", fill_value=0)


def _padded(entries: list[np.ndarray], end: int) -> Array:
    """(units, the longest), filled with `end`."""
    out = np.full((len(entries), max(len(some) for some in entries)), end, np.int32)
    for row, some in zip(out, entries, strict=True):
        row[: len(some)] = some
    return cast(Array, jax.device_put(out))


def _stacks(units: list[Unit], workers: int) -> Iterator[list[Unit]]:
    """Units of one shape and one A, a few megabytes of Gram matrices at a time, and some for each worker."""
    for _, group in itertools.groupby(units, key=lambda unit: (id(unit.inputs), unit.shape)):
        members = list(group)
        most = int(STACK_BYTES // (8 * max(members[0].order, 1) ** 2))
        step = max(min(most, -(-len(members) // (4 * workers))), 1)
        for start in range(0, len(members), step):
            yield members[start : start + step]


def _single(elements: np.ndarray, single: list[Any], columns: np.ndarray) -> list[Entries]:
    """The single variables of some elements, in the order of `columns`."""
    order = np.argsort(columns) if single else columns
    found = []
    for coefficient, entry in single:
        values = coefficient[elements]
        some = np.flatnonzero(values)
        if len(some):
            places = order[np.searchsorted(columns, entry[elements[some]], sorter=order)]
            found.append(Entries(some, places, values[some].astype(np.float64)))
    return found


def units(found: Found, variables: int) -> tuple[np.ndarray, np.ndarray]:
    """The unit of every element of the result and of every variable; UNKNOWN for what plays no part."""
    output = found.output
    elements = found.flat(output.unit).astype(np.int64)
    single = [
        (found.flat(coefficient) != 0, found.flat(entry).astype(np.int64)) for coefficient, entry in output.single
    ]
    if found.grid is None:
        return _components(len(elements), single, variables)
    of_variable = np.full(variables, UNKNOWN, np.int64)
    of_variable[found.grid.entries] = np.arange(found.grid.channels)[:, None]
    for live, entry in single:
        used = live & (elements != UNKNOWN)
        new = used & (of_variable[entry] == UNKNOWN)
        of_variable[entry[new]] = elements[new]
        if np.any(of_variable[entry[used]] != elements[used]):
            raise Declined("one variable serves several units")
    for live, entry in single:
        alone = live & (elements == UNKNOWN)
        elements = np.where(alone, of_variable[entry], elements)
        if np.any(elements[alone] == UNKNOWN):
            raise Declined("some results depend only on variables beside the product")
    return elements, of_variable


def _components(count: int, single: list[Any], variables: int) -> tuple[np.ndarray, np.ndarray]:
    """Without a product: variables that meet in an element belong together."""
    first = np.full(count, UNKNOWN, np.int64)
    used = np.zeros(variables, bool)
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for live, entry in single:
        used[entry[live]] = True
        both = live & (first != UNKNOWN)
        rows.append(first[both])
        columns.append(entry[both])
        first = np.where(live & (first == UNKNOWN), entry, first)
    # Of a table of embeddings few are used: the others are no part of the graph.
    at = np.flatnonzero(used)
    one, other = (np.searchsorted(at, np.concatenate(part)) for part in (rows, columns))
    graph = sparse.coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(len(at), len(at)))
    of_variable = np.full(variables, UNKNOWN, np.int64)
    of_variable[at] = csgraph.connected_components(graph, directed=False)[1]
    return np.where(first == UNKNOWN, UNKNOWN, of_variable[first]), of_variable
