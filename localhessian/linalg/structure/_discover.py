"""Finding structure in the traced product of a linear map: v -> R v is a linear program, walked once.

The walk keeps, for every array, how its elements depend on v (`Dependent`). It starts with the variables, lets them
meet constants in one dot product or convolution (`Grid`), and follows what is done to the result. Where the program
does anything that the form does not hold, it declines and says what. With numbers it finds R itself; while JAX traces
them, which units share no variable.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from localhessian._programs import Equation, Program, at_once, entered, evaluate, is_tracing
from localhessian._tree import is_concrete
from localhessian._types import Array
from localhessian.linalg.operators import LinearMap
from localhessian.linalg.structure import _mixing
from localhessian.linalg.structure._dependence import (
    MAX_TERMS,
    UNKNOWN,
    Declined,
    Dependent,
    Sums,
    Unknown,
    add,
    variables,
)
from localhessian.linalg.structure._mixing import Grid
from localhessian.linalg.structure._moves import MOVES, chosen, known, of_constants, windows


@dataclasses.dataclass
class Found:
    """What a walk found: how the results depend on the variables."""

    output: Dependent
    """Of shape (m,), or (s, m) for a batch of maps."""
    grid: Grid | None
    """None: no product, every element is a sum of single variables."""
    sums: list[np.ndarray]
    """(units, places) each."""
    by_channel: bool
    """Whether units are channels of u (else places)."""

    def flat(self, field: np.ndarray | None) -> np.ndarray:
        """One field of the output, as a vector; None is zero."""
        return np.broadcast_to(np.zeros((), np.int32) if field is None else field, self.output.shape).ravel()

    def apply(self, v: np.ndarray) -> np.ndarray:
        """R v from the numbers that were found: what a probe compares with the map's own product."""
        output, unit = self.output, np.maximum(self.flat(self.output.unit), 0)
        result = np.zeros(len(unit))
        if self.grid is not None:
            u = self.grid.apply(v) if self.by_channel else self.grid.apply(v).T  # (units, places)
            result += self.flat(output.own) * u[unit, self.flat(output.place)]
            for k, coefficient in output.shared.items():
                result += self.flat(coefficient) * np.einsum("up,up->u", self.sums[k], u)[unit]
        for coefficient, entry in output.single:
            result += self.flat(coefficient) * v[self.flat(entry)]
        return result


def members(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Where each label stands, in order; UNKNOWN is none."""
    known = np.flatnonzero(labels != UNKNOWN)
    order = known[np.argsort(labels[known], kind="stable")]
    found, starts = np.unique(labels[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(found) else []
    return {int(label): part for label, part in zip(found, parts, strict=True)}


def _program(prepared: LinearMap, v: jax.ShapeDtypeStruct) -> tuple[Program, list[Any]]:
    """v -> R v, and what it takes before v."""
    if is_tracing():  # R may close over what is traced
        return jax.make_jaxpr(prepared.product)(v), []
    return _multiply_by.trace(prepared, v).jaxpr, jax.tree.leaves(prepared)


@jax.jit
def _multiply_by(prepared: LinearMap, v: Array) -> Array:
    """R v; never run. JAX remembers its program for maps of the same kind and shapes."""
    return prepared.product(v)


def walk(prepared: LinearMap, by_channel: bool, max_bytes: float, traced: bool = False) -> Found:
    """Follow the variables of a prepared map through its product, keeping channels of u apart, or its places.

    Inputs of a convolution that unfolded take more than `max_bytes` are unfolded when rows are needed. `traced`:
    numbers may be missing, and what they make is NaN.

    Raises:
        Declined: the product does something that does not keep the units apart.

    Cost: one trace for maps of one kind and shapes, one unfolding of the inputs, a few passes over the activations.
    """
    shape = (prepared.in_size,) if prepared.batch is None else (prepared.batch, prepared.in_size)
    program, numbers = _program(prepared, jax.ShapeDtypeStruct(shape, prepared.dtype))
    if not (traced or is_concrete(numbers, program.consts)):
        raise Declined("its numbers are not known while JAX traces it")
    walker = _Walker(by_channel, max_bytes)
    with at_once():
        (output,) = evaluate(program, [*map(known, numbers), variables(shape)], walker.step, known)
    if not isinstance(output, Dependent):
        raise Declined("the result does not depend on the variables")
    grid = walker.grid
    if grid is not None and np.bincount(grid.entries.ravel()).max(initial=0) > 1:
        raise Declined("one variable enters its product at several places")
    return Found(output, grid, walker.sums.weights, by_channel)


class _Walker:
    def __init__(self, by_channel: bool, max_bytes: float) -> None:
        self.by_channel, self.max_bytes = by_channel, max_bytes
        self.grid: Grid | None = None
        self.sums = Sums()

    def step(self, eqn: Equation, values: list[Any]) -> list[Any]:
        """What an equation makes of values, of which some are `Dependent`; of constants, as JAX does."""
        if not any(isinstance(value, Dependent) for value in values):
            return of_constants(eqn, values)
        inner = entered(eqn)
        if inner is not None:
            return evaluate(inner, values, self.step, known)
        name = eqn.primitive.name
        if name in MOVES:
            return MOVES[name](eqn, values)
        if name in _RULES:
            return _RULES[name](self, eqn, values)
        raise Declined(f"it applies `{name}` to them")

    def enter(self, grid: Grid, place: np.ndarray, channel: np.ndarray, shape: tuple[int, ...]) -> Dependent:
        """u itself."""
        if self.grid is not None:
            raise Declined("they enter by more than one product")
        self.grid = grid
        units, inner = (channel, place) if self.by_channel else (place, channel)
        sizes = (grid.channels, grid.places)
        self.sums.units_and_places = sizes if self.by_channel else sizes[::-1]
        own = np.ones(shape, grid.inputs[0].dtype)
        return Dependent(shape, np.broadcast_to(units, shape), own, np.broadcast_to(inner, shape))


def _numbers(value: Any) -> np.ndarray:
    array = value.numbers if isinstance(value, Unknown) else np.asarray(value)
    return array if array.dtype in (np.float32, np.float64, np.bool_) else array.astype(np.float32)


def _add(walker: _Walker, eqn: Equation, values: list[Any]) -> list[Any]:
    x, y = (value if isinstance(value, Dependent) else None for value in values)
    if x is None or y is None:
        one, constant = (y, values[0]) if x is None else (x, values[1])
        if not isinstance(constant, Unknown) and np.any(np.asarray(constant)):
            raise Declined("it adds a constant: the program is not linear")
        return [one]  # zeros stand for the other variables, which are held; a probe tells of other numbers
    for u, other in ((x, y), (y, x)):
        bias = _bias(walker, u, other)
        if bias is not None:
            walker.grid.with_bias(bias)  # type: ignore[union-attr]
            return [u]
    return [add(x, y)]


def _bias(walker: _Walker, u: Dependent, other: Dependent) -> np.ndarray | None:
    """The variable that each channel of an untouched u gets, where this is what is added."""
    if walker.grid is None or u.own is None or u.shared or u.single or not other.is_single:
        return None
    coefficient, entry = other.single[0]
    if u.shape != np.broadcast_shapes(u.shape, other.shape) or not (np.all(u.own == 1) and np.all(coefficient == 1)):
        return None
    channel = np.broadcast_to(u.unit if walker.by_channel else u.place, u.shape).ravel()  # type: ignore[arg-type]
    entry = np.broadcast_to(entry, u.shape).ravel()
    found = np.full(walker.grid.channels, UNKNOWN, np.int64)
    found[channel] = entry
    taken = np.isin(found, walker.grid.entries)
    alone = len(np.unique(found)) == len(found)  # a variable of several channels makes them one unit
    return found if np.all(found[channel] == entry) and np.all(found >= 0) and alone and not np.any(taken) else None


def _subtract(walker: _Walker, eqn: Equation, values: list[Any]) -> list[Any]:
    x, y = values
    return _add(walker, eqn, [x, y.times(np.float32(-1)) if isinstance(y, Dependent) else y])


def _multiply(walker: _Walker, eqn: Equation, values: list[Any]) -> list[Any]:
    x, y = values
    if isinstance(x, Dependent) and isinstance(y, Dependent):
        raise Declined("it multiplies them with each other: the program is not linear")
    return [x.times(_numbers(y)) if isinstance(x, Dependent) else y.times(_numbers(x))]


def _divide(walker: _Walker, eqn: Equation, values: list[Any]) -> list[Any]:
    x, y = values
    if isinstance(y, Dependent):
        raise Declined("it divides by them: the program is not linear")
    return [x.times(1 / _numbers(y))]


def _pooled(walker: _Walker, eqn: Equation, values: list[Any]) -> list[Any]:
    """Max pooling; where the maxima are not known, each result may be any element of its window."""
    x, by = values
    if not (isinstance(x, Dependent) and isinstance(by, Unknown)):
        return chosen(eqn, values)
    if math.prod(eqn.params["window_dimensions"]) * len(x.single) > MAX_TERMS:
        raise Declined("it pools over windows of many variables")
    anywhere = walker.sums.somewhere(x)
    return [functools.reduce(add, (term.times(np.float32(np.nan)) for term in windows(eqn, anywhere)))]


def _dot(walker: _Walker, eqn: Equation, values: list[Any]) -> list[Any]:
    return [_product(walker, eqn, values, lambda x, y, first: _mixing.of_dot(eqn, x, y, first))]


def _convolution(walker: _Walker, eqn: Equation, values: list[Any]) -> list[Any]:
    if isinstance(values[0], Dependent):
        raise Declined("it convolves them, which couples neighbouring positions")
    return [_product(walker, eqn, values, lambda x, y, first: _mixing.of_convolution(eqn, x, y, walker.max_bytes))]


def _product(walker: _Walker, eqn: Equation, values: list[Any], make: Callable[..., Any]) -> Dependent:
    first = isinstance(values[0], Dependent)
    dependent, constant = values if first else values[::-1]
    if isinstance(constant, Dependent):
        raise Declined("it multiplies them with each other: the program is not linear")
    if dependent.own is not None or dependent.shared:
        raise Declined("a second product mixes channels")
    grid, place, channel = make(dependent, _numbers(constant), first)
    return walker.enter(grid, place, channel, eqn.outvars[0].aval.shape)  # type: ignore[attr-defined]


_RULES: dict[str, Callable[[_Walker, Equation, list[Any]], list[Any]]] = {
    "add": _add,
    "add_any": _add,
    "sub": _subtract,
    "mul": _multiply,
    "div": _divide,
    "neg": lambda walker, eqn, values: [values[0].times(np.float32(-1))],
    "reduce_sum": lambda walker, eqn, values: [walker.sums.reduce(values[0], tuple(eqn.params["axes"]))],
    "select_and_gather_add": _pooled,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
}
