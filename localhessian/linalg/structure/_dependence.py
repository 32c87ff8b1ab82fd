"""How one array of a linear program depends on its variables v, element by element.

The variables meet the program's constants in one product u = A w (a `Grid`: places x channels). After it, an element
may hold one entry of u, multiples of sums over its unit, and single variables:

    value[o] = own[o] u[place[o], unit[o]] + sum_k shared_k[o] s_k[unit[o]] + sum_t coefficient_t[o] v[entry_t[o]]

A *unit* is what stays independent: a channel of u (or one of its places, for programs that mix channels). Every rule
below either keeps this form exactly or declines: it never approximates.

While JAX traces the program, some of its constants have no numbers yet (`Unknown`). A coefficient that they make is
NaN, which stands for any number: the form then says what may depend on what.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np

UNKNOWN = -1
"""The unit of an element that holds single variables only."""
MAX_TERMS = 16
"""Single variables in one element (of 4 x 4 in average pooling), sums of a unit: above this no layer is meant."""


class Declined(Exception):
    """The program has no structure that is known here; the message says where it was lost."""


class Unconfirmed(Declined):
    """These numbers tell otherwise; those of an equal program may not."""


class TooLarge(Declined):
    """There is one, beyond the limits."""


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A constant whose numbers are known when the program runs."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def numbers(self) -> np.ndarray:
        """NaN everywhere."""
        return np.broadcast_to(np.float32(np.nan), self.shape)


@dataclasses.dataclass
class Dependent:
    """An array that depends linearly on the variables; every field has the array's shape (or broadcasts to it)."""

    shape: tuple[int, ...]
    unit: np.ndarray
    own: np.ndarray | None = None
    place: np.ndarray | None = None
    shared: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    """By the number of the sum."""
    single: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)
    """(coefficient, entry)."""

    def rearranged(self, move: Callable[[np.ndarray], np.ndarray]) -> "Dependent":
        """Every field with its elements moved, chosen or repeated."""

        def moved(field: np.ndarray) -> np.ndarray:
            return move(np.broadcast_to(field, self.shape))

        unit = moved(self.unit)
        own, place = (None, None) if self.own is None or self.place is None else (moved(self.own), moved(self.place))
        shared = {k: moved(coefficient) for k, coefficient in self.shared.items()}
        single = [(moved(coefficient), moved(entry)) for coefficient, entry in self.single]
        return Dependent(unit.shape, unit, own, place, shared, single)

    def times(self, factor: np.ndarray | np.floating) -> "Dependent":
        """Multiplied element by element."""
        scaled = self._with_coefficients(lambda coefficient: coefficient * factor)
        return dataclasses.replace(scaled, shape=np.broadcast_shapes(self.shape, np.shape(factor)))

    def where(self, there: np.ndarray) -> "Dependent":
        """Zero elsewhere; not by a product, which leaves NaN what it is."""
        return self._with_coefficients(lambda coefficient: np.where(there, coefficient, np.float32(0)))

    def _with_coefficients(self, change: Callable[[np.ndarray], np.ndarray]) -> "Dependent":
        own = None if self.own is None else change(self.own)
        shared = {k: change(coefficient) for k, coefficient in self.shared.items()}
        single = [(change(coefficient), entry) for coefficient, entry in self.single]
        return Dependent(self.shape, self.unit, own, self.place, shared, single)

    @property
    def is_single(self) -> bool:
        """Whether every element is one variable times a number."""
        return self.is_without_product and len(self.single) == 1

    @property
    def is_without_product(self) -> bool:
        """Whether every element is a sum of variables times numbers."""
        return self.own is None and not self.shared


def variables(size: tuple[int, ...]) -> Dependent:
    """The vector of variables itself."""
    entries = np.arange(np.prod(size), dtype=np.int32).reshape(size)
    unit, ones = (np.broadcast_to(value, size) for value in (np.int32(UNKNOWN), np.float32(1)))
    return Dependent(size, unit, single=[(ones, entries)])


def add(x: Dependent, y: Dependent) -> Dependent:
    """x + y."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    own, place = x.own, x.place
    if y.own is not None:
        if own is None or place is None:
            own, place = y.own, y.place
        elif not _same(place, y.place, shape):
            raise Declined("it adds what comes from different positions of one unit")
        else:
            own = own + y.own
    shared = dict(x.shared)
    for k, coefficient in y.shared.items():
        shared[k] = shared[k] + coefficient if k in shared else coefficient
    single = list(x.single)
    for coefficient, entry in y.single:
        same = next((t for t, (_, other) in enumerate(single) if _same(entry, other, shape)), None)
        if same is None:
            single.append((coefficient, entry))
        else:
            single[same] = (single[same][0] + coefficient, entry)
    if len(single) > MAX_TERMS or len(shared) > MAX_TERMS:
        raise Declined("it adds more terms than a layer does")
    return Dependent(shape, _one_unit(x.unit, y.unit, shape), own, place, shared, single)


def concatenate(parts: Sequence[Dependent], axis: int) -> Dependent:
    """Several arrays one after the other."""

    def joined(fields: Sequence[np.ndarray]) -> np.ndarray:
        full = [np.broadcast_to(field, part.shape) for field, part in zip(fields, parts, strict=True)]
        return np.concatenate(full, axis)

    zero, none = np.zeros((), np.float32), np.zeros((), np.int32)
    own = place = None
    if any(part.own is not None for part in parts):
        own = joined([zero if part.own is None else part.own for part in parts])
        place = joined([none if part.place is None else part.place for part in parts])
    shared = {k: joined([part.shared.get(k, zero) for part in parts]) for part in parts for k in part.shared}
    most = max(len(part.single) for part in parts)
    padded = [part.single + [(zero, none)] * (most - len(part.single)) for part in parts]
    single = [(joined([p[t][0] for p in padded]), joined([p[t][1] for p in padded])) for t in range(most)]
    unit = joined([part.unit for part in parts])
    return Dependent(unit.shape, unit, own, place, shared, single)


def select(which: Any, cases: Sequence[Dependent | None], shape: tuple[int, ...]) -> Dependent:
    """Element by element the case of that number; None is zero, and an `Unknown` number means any case."""
    any_case, number = isinstance(which, Unknown), np.asarray(getattr(which, "numbers", which))
    chosen = [
        case.times(np.float32(np.nan)) if any_case else case.where(number == n)
        for n, case in enumerate(cases)
        if case is not None
    ]
    return dataclasses.replace(functools.reduce(add, chosen), shape=shape)


class Sums:
    """The sums over units that the program makes: s_k[unit] = sum over places of weights[k][unit, place] u."""

    def __init__(self) -> None:
        """None yet."""
        self.weights: list[np.ndarray] = []
        self.units_and_places = 0, 0
        """Of u, once there is one."""

    def somewhere(self, x: Dependent) -> Dependent:
        """What comes from one place of a unit, as a sum over the unit of which nothing is known."""
        if x.own is None:
            return x
        self.weights.append(np.broadcast_to(np.float32(np.nan), self.units_and_places))
        unknown = np.where(x.own != 0, np.float32(np.nan), np.float32(0))
        shared = x.shared | {len(self.weights) - 1: unknown}
        return dataclasses.replace(x, own=None, place=None, shared=shared)

    def reduce(self, x: Dependent, axes: tuple[int, ...]) -> Dependent:
        """The sum of an array over axes."""
        if x.is_without_product and math.prod(x.shape[axis] for axis in axes) * len(x.single) <= MAX_TERMS:
            return functools.reduce(add, _slices(x, axes))
        shape = tuple(n for axis, n in enumerate(x.shape) if axis not in axes)
        unit = _constant(x, x.unit, axes, "it sums over different units")
        shared = {k: _sum(x, coefficient, axes) for k, coefficient in x.shared.items()}
        single = [
            (_sum(x, c, axes), _constant(x, entry, axes, "it sums over different variables")) for c, entry in x.single
        ]
        if x.own is None or x.place is None:
            return Dependent(shape, unit, None, None, shared, single)
        if all(x.shape[axis] == 1 for axis in axes):
            return Dependent(shape, unit, x.own.reshape(shape), x.place.reshape(shape), shared, single)
        if len(np.unique(unit)) != unit.size:
            raise Declined("it sums over a part of a unit's positions")
        units, places = self.units_and_places
        own, at, of = (np.broadcast_to(field, x.shape).ravel() for field in (x.own, x.place, x.unit))
        weights = np.bincount(of.astype(np.int64) * places + at, weights=own, minlength=units * places)
        self.weights.append(weights.reshape(units, places))
        shared[len(self.weights) - 1] = np.ones(shape, np.float32)
        return Dependent(shape, unit, None, None, shared, single)


def _slices(x: Dependent, axes: tuple[int, ...]) -> Iterator[Dependent]:
    for place in np.ndindex(*(x.shape[axis] for axis in axes)):
        chosen = tuple(place[axes.index(axis)] if axis in axes else slice(None) for axis in range(len(x.shape)))
        yield x.rearranged(operator.itemgetter(chosen))


def _sum(x: Dependent, field: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return cast(np.ndarray, np.broadcast_to(field, x.shape).sum(axes, dtype=np.float64))


def _constant(x: Dependent, field: np.ndarray, axes: tuple[int, ...], complaint: str) -> np.ndarray:
    full = np.broadcast_to(field, x.shape)
    first = full[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(full.ndim))]
    if not np.array_equal(np.broadcast_to(first, x.shape), full):
        raise Declined(complaint)
    return np.squeeze(first, axes)


def _one_unit(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    a, b = np.broadcast_to(a, shape), np.broadcast_to(b, shape)
    if np.array_equal(a, b):
        return a
    if np.any((a != b) & (a != UNKNOWN) & (b != UNKNOWN)):
        raise Declined("it adds different units")
    return cast(np.ndarray, np.maximum(a, b))


def _same(a: np.ndarray | None, b: np.ndarray | None, shape: tuple[int, ...]) -> bool:
    return a is not None and b is not None and np.array_equal(np.broadcast_to(a, shape), np.broadcast_to(b, shape))
