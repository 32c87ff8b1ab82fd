"""What a program does to the elements of an array without arithmetic: they are moved, chosen, repeated, joined."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._programs import Equation, bind
from localhessian._tree import is_concrete
from localhessian.linalg.structure._dependence import (
    MAX_TERMS,
    UNKNOWN,
    Declined,
    Dependent,
    Unknown,
    add,
    concatenate,
    select,
)
from localhessian.linalg.structure._mixing import unfolded

EXACT_INTEGERS = 2**24
"""Integers below this are exact in float32."""


def known(constant: Any) -> Any:
    """A constant as the walk holds it."""
    return constant if is_concrete(constant) else Unknown(constant.shape, constant.dtype)


def of_constants(eqn: Equation, values: Sequence[Any]) -> list[Any]:
    """An equation of constants: the simplest by NumPy, for JAX compiles a program for each equation."""
    if any(isinstance(value, Unknown) for value in values):
        return [Unknown(atom.aval.shape, atom.aval.dtype) for atom in eqn.outvars]  # type: ignore[attr-defined]
    is_extended = any(jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended) for value in values)
    if is_extended or not _is_same_in_numpy(eqn):
        return bind(eqn, [jnp.asarray(value) for value in values])
    name, arrays = eqn.primitive.name, [np.asarray(value) for value in values]
    if name in _PLAIN:
        return MOVES[name](eqn, [_Constant(arrays[0])])
    if name == "concatenate":
        return [np.concatenate(arrays, eqn.params["dimension"])]
    with np.errstate(all="ignore"):
        if name in _ARITHMETIC:
            return [np.asarray(_ARITHMETIC[name](*arrays))]
        return [arrays[0].astype(eqn.params["new_dtype"])]


def _is_same_in_numpy(eqn: Equation) -> bool:
    """Whether NumPy gives what JAX does, to the bit; to integers the two round alike, but for what is out of range."""
    name = eqn.primitive.name
    if name == "convert_element_type":
        return bool(jnp.issubdtype(eqn.params["new_dtype"], jnp.floating))
    return name in _PLAIN or name in _ARITHMETIC or name == "concatenate"


@dataclasses.dataclass(frozen=True)
class _Constant:
    """What the rules of moves take for a `Dependent`."""

    numbers: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    def rearranged(self, move: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return move(self.numbers)


def _moving(move: Callable[[np.ndarray, Any], np.ndarray]) -> Callable[[Equation, list[Any]], list[Any]]:
    """The rule of an equation that does nothing but move elements, as told of a field and the equation."""
    return lambda eqn, values: [values[0].rearranged(lambda field: move(field, eqn))]


def _broadcast(eqn: Equation, values: list[Any]) -> list[Any]:
    shape, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    sizes = [values[0].shape[axes.index(axis)] if axis in axes else 1 for axis in range(len(shape))]
    return [values[0].rearranged(lambda field: np.broadcast_to(field.reshape(sizes), shape))]


def _split(eqn: Equation, values: list[Any]) -> list[Any]:
    sizes, axis = eqn.params["sizes"], eqn.params["axis"]
    ends = np.cumsum(sizes)
    return [
        values[0].rearranged(lambda field, a=end - size, b=end: field[(slice(None),) * axis + (slice(a, b),)])
        for size, end in zip(sizes, ends, strict=True)
    ]


def _slice(eqn: Equation, values: list[Any]) -> list[Any]:
    p = eqn.params
    steps = p["strides"] or (1,) * len(p["start_indices"])
    chosen = tuple(slice(*one) for one in zip(p["start_indices"], p["limit_indices"], steps, strict=True))
    return [values[0].rearranged(lambda field: field[chosen])]


def _concatenate(eqn: Equation, values: list[Any]) -> list[Any]:
    if not all(isinstance(value, Dependent) for value in values):
        raise Declined("it joins them with constants")
    return [concatenate(values, eqn.params["dimension"])]


def _stack(eqn: Equation, values: list[Any]) -> list[Any]:
    if not all(isinstance(value, Dependent) for value in values):
        raise Declined("it joins them with constants")
    axis = eqn.params["axis"]
    return [concatenate([value.rearranged(lambda field: np.expand_dims(field, axis)) for value in values], axis)]


def _unstack(eqn: Equation, values: list[Any]) -> list[Any]:
    lead = (slice(None),) * eqn.params["axis"]
    return [values[0].rearranged(operator.itemgetter((*lead, i))) for i in range(len(eqn.outvars))]


def _select(eqn: Equation, values: list[Any]) -> list[Any]:
    which, *cases = values
    if isinstance(which, Dependent):
        raise Declined("it chooses by their values: the program is not linear")
    dependents = [case if isinstance(case, Dependent) else None for case in cases]
    shape = eqn.outvars[0].aval.shape  # type: ignore[attr-defined]
    return [select(which, dependents, shape)]


def chosen(eqn: Equation, values: list[Any]) -> list[Any]:
    """One element each, found by sending the numbers of the elements through the equation: gather, max pooling."""
    x, *rest = values
    if not isinstance(x, Dependent) or any(isinstance(value, Dependent) for value in rest):
        raise Declined("it chooses by their values: the program is not linear")
    if any(isinstance(value, Unknown) for value in rest):
        raise Declined("it chooses by numbers that are not known while JAX traces it")
    floats = [jnp.result_type(value) for value in rest if jnp.issubdtype(jnp.result_type(value), jnp.floating)]
    at = _number_of(x, of_constants(eqn, [_numbered(x, floats[0] if floats else jnp.int32), *rest])[0])
    if not np.all(at >= 1):
        raise Declined("it fills in elements that are not there")
    if at.size > math.prod(x.shape) // 4:
        return [x.rearranged(lambda field: field.ravel()[at - 1])]
    where = np.unravel_index(at - 1, x.shape)  # a few rows of a table, of which no copy is made
    return [x.rearranged(lambda field: field[where])]


def _placed(eqn: Equation, values: list[Any]) -> list[Any]:
    """Elements that are put among zeros, each at a place of its own, found in the same way."""
    among, places, x = values
    if not isinstance(x, Dependent) or any(isinstance(value, Dependent | Unknown) for value in (among, places)):
        raise Declined("it puts them among others, or where is not known while JAX traces it")
    if np.any(np.asarray(among)):
        raise Declined("it adds a constant: the program is not linear")
    zeros = jnp.zeros(among.shape, jnp.float32)
    put: Callable[..., Any] = lambda numbers: of_constants(eqn, [zeros, places, numbers])[0]
    if np.any(np.asarray(put(jnp.ones(x.shape, jnp.float32))) > 1):
        raise Declined("it puts several of them in one place")
    return [_where_there(x, _number_of(x, put(_numbered(x, jnp.float32))))]


def _numbered(x: Dependent, dtype: Any) -> Any:
    """The numbers of its elements, from 1, in its shape."""
    size = math.prod(x.shape)
    if size + 1 >= (EXACT_INTEGERS if jnp.issubdtype(dtype, jnp.floating) else 2**31):
        raise Declined(f"it chooses among more than {EXACT_INTEGERS} elements")
    return jnp.asarray(np.arange(1, size + 1, dtype=np.int32).reshape(x.shape), dtype)


def _number_of(x: Dependent, found: Any) -> np.ndarray:
    """Which element, counted from 1, stands at each place of the result; 0: none."""
    at = np.asarray(found).astype(np.int64)
    if np.any((at < 0) | (at > math.prod(x.shape))):
        raise Declined("it fills in elements that are not there")
    return at


def _where_there(x: Dependent, at: np.ndarray) -> Dependent:
    """The elements of these numbers; zero where there is none."""
    there = at > 0
    moved = x.rearranged(lambda field: field.ravel()[np.maximum(at - 1, 0)]).where(there)
    return dataclasses.replace(moved, unit=np.where(there, moved.unit, UNKNOWN))


def windows(eqn: Equation, x: Dependent) -> Iterator[Dependent]:
    """The elements of each window, one after the other; zero where there is padding."""
    p = eqn.params
    numbers = np.arange(1, math.prod(x.shape) + 1).reshape(1, 1, 1, *x.shape)
    geometry = (p[name] for name in ("window_strides", "padding", "base_dilation", "window_dilation"))
    at = unfolded(numbers, p["window_dimensions"], *geometry).reshape(*eqn.outvars[0].aval.shape, -1)  # type: ignore[attr-defined]
    return (_where_there(x, one) for one in np.moveaxis(at, -1, 0))


def _window_sum(eqn: Equation, values: list[Any]) -> list[Any]:
    """Average pooling."""
    (x,) = values
    if not x.is_without_product or math.prod(eqn.params["window_dimensions"]) * len(x.single) > MAX_TERMS:
        raise Declined("it sums over windows")
    return [functools.reduce(add, windows(eqn, x))]


_reshape = _moving(lambda field, eqn: field.reshape(eqn.outvars[0].aval.shape))
_PLAIN = frozenset(
    ("reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim", "split", "slice", "rev", "tile", "unstack")
)
"""Of one operand, whose rules do nothing but `rearranged`."""
_ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative}
_IDENTITIES = "convert_element_type reduce_precision copy copy_p name optimization_barrier sharding_constraint"
MOVES: dict[str, Callable[[Equation, list[Any]], list[Any]]] = {
    **dict.fromkeys(_IDENTITIES.split(), lambda _, values: list(values)),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "transpose": _moving(lambda field, eqn: field.transpose(eqn.params["permutation"])),
    "broadcast_in_dim": _broadcast,
    "split": _split,
    "slice": _slice,
    "rev": _moving(lambda field, eqn: np.flip(field, eqn.params["dimensions"])),
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _moving(lambda field, eqn: np.tile(field, eqn.params["reps"])),
    "select_n": _select,
    "reduce_window_sum": _window_sum,
    "gather": chosen,
    "dynamic_slice": chosen,
    "scatter": _placed,
    "scatter-add": _placed,
    "scatter_add": _placed,
}
"""By primitive: the results of an equation that some `Dependent` enters."""
