"""Axes of a sweep: their values, which of them are looped, and every point between them."""

import dataclasses
import itertools
import keyword
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import short

Value = bool | int | float | str
RESERVED = ("key", "block", "wrt", "part", "error", "finished")
"""Names of what else stands in a dataset, or goes to a case."""


@dataclasses.dataclass(frozen=True)
class Axes:
    """The values of every axis by its name, in the order in which they were given."""

    values: dict[str, tuple[Value, ...]]
    static: tuple[str, ...]
    """The names of those that are looped."""

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each has."""
        return tuple(map(len, self.values.values()))

    @property
    def count(self) -> int:
        """How many cases there are."""
        return math.prod(self.shape)

    @property
    def moving(self) -> tuple[str, ...]:
        """The names of those inside one program."""
        return tuple(name for name in self.values if name not in self.static)

    def point(self, case: int) -> dict[str, Value]:
        """The values at a case; cases are counted with the last axis fastest."""
        places = np.unravel_index(case, self.shape)
        return {name: values[int(i)] for (name, values), i in zip(self.values.items(), places, strict=True)}

    def groups(self) -> Iterator[tuple[dict[str, Value], np.ndarray]]:
        """For each point of the static axes, its values and the numbers of its cases."""
        numbers = np.arange(self.count).reshape(self.shape)
        for places in itertools.product(*(range(len(self.values[name])) for name in self.static)):
            at = dict(zip(self.static, places, strict=True))
            chosen = numbers[tuple(at.get(name, slice(None)) for name in self.values)]
            yield {name: self.values[name][i] for name, i in at.items()}, np.ravel(chosen)

    def arrays(self, cases: np.ndarray) -> dict[str, jax.Array]:
        """The values of the axes that move, at some cases: what a program takes."""
        places = np.unravel_index(cases, self.shape)
        found = {}
        for (name, values), place in zip(self.values.items(), places, strict=True):
            if name not in self.static:
                kind = jnp.result_type(float) if isinstance(values[0], float) else jnp.asarray(values[:1]).dtype
                found[name] = jnp.asarray(np.asarray(values)[place], kind)
        return found


def axes_of(axes: Any, static_axes: Any, compiled: bool) -> Axes:
    """What was given, in one form.

    Args:
        axes: A dictionary of values by name.
        static_axes: A name or names of those to be looped.
        compiled: Whether the others go into a program, as numbers.

    Raises:
        TypeError: They are of another kind.
        ValueError: An axis is empty, repeats a value, or holds what cannot go into a program; an unknown name.
    """
    if not isinstance(axes, Mapping) or not axes:
        raise TypeError(f"`axes` must be a dictionary with the values of each axis, got {short(axes)}.")
    static = _names(static_axes)
    unknown = [name for name in static if name not in axes]
    if unknown:
        raise ValueError(
            f"`static_axes` names `{unknown[0]}`, which `axes` does not have: {', '.join(map(str, axes))}."
        )
    return Axes({name: _values(name, given, compiled and name not in static) for name, given in axes.items()}, static)


def _names(given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"`static_axes` must be a name or names of `axes`, got {short(given)}.")
    return tuple(dict.fromkeys(names))


def _values(name: Any, given: Any, moves: bool) -> tuple[Value, ...]:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED:
        raise ValueError(
            f"`axes` must have names that a function can take, and none of {', '.join(RESERVED)}, got {name!r}."
        )
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"`axes` must hold a sequence of values for `{name}`, got {short(given)}.")
    array = given if hasattr(given, "ndim") else None
    if array is not None and array.ndim != 1:
        raise TypeError(f"`axes` must hold a sequence of values for `{name}`, got {short(given)}.")
    values = tuple(_plain(name, value) for value in given)
    if not values or len(set(values)) < len(values):
        raise ValueError(f"`axes` must hold at least one value for `{name}`, and none twice, got {_short(values)}.")
    kinds = {type(value) for value in values}
    if kinds == {int, float}:
        values, kinds = tuple(map(float, values)), {float}
    if len(kinds) > 1:
        raise TypeError(f"`axes` must hold values of one kind for `{name}`, got {_short(values)}.")
    if moves and str in kinds:
        raise TypeError(f"`axes` holds words for `{name}`, which cannot go into a program: name it in `static_axes`.")
    return values


def _plain(name: str, value: Any) -> Value:
    """A number or a word of Python."""
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        value = value.item()
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError(f"`axes` must hold finite numbers or words for `{name}`, got {short(value)}.")
    return value


def _short(values: Sequence[Value]) -> str:
    return f"{list(values[:6])}{' ...' if len(values) > 6 else ''}"
