"""The function that is swept: how it is called, and what tells it from another."""

import dataclasses
import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from localhessian._arguments import expect_function
from localhessian._programs import program_text
from localhessian._tree import raw_bytes
from localhessian.analysis.sweeps._axes import Axes


@dataclasses.dataclass(frozen=True)
class Case:
    """case(**point) or case(**point, key=...): of an own key for each case where it takes one."""

    function: Callable[..., Any]
    takes_key: bool

    def __call__(self, point: Mapping[str, Any], key: Any) -> Any:
        """What it returns at a point."""
        return self.function(**point, **({"key": key} if self.takes_key else {}))

    @property
    def name(self) -> str:
        """Its module and name."""
        inner = _unwrapped(self.function)
        name = getattr(inner, "__qualname__", type(inner).__qualname__)
        return f"{getattr(inner, '__module__', '')}.{name}"


def case_of(function: Any, axes: Axes) -> Case:
    """The function that takes these axes.

    Raises:
        TypeError: It is none, or takes other arguments; the message names them.
    """
    expect_function("case", function, "a function of the axes, by name")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some functions in C nothing is known
        return Case(function, False)
    kinds = {p.kind for p in signature.parameters.values()}
    takes_key = "key" in signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds
    try:
        signature.bind(**dict.fromkeys(axes.values), **({"key": None} if takes_key else {}))
    except TypeError as error:
        raise TypeError(
            f"`case` must take each of `axes` by name ({', '.join(axes.values)}; and `key`, if it wants one), but "
            f"`{Case(function, False).name}` does not: {error}."
        ) from error
    return Case(function, takes_key)


def keys_of(key: Any, cases: np.ndarray) -> Any:
    """One for each case, by its number."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(np.asarray(cases, np.uint32))


def code_of(function: Any) -> str:
    """A digest of what it is made of: code, defaults, and what it closes over."""
    return hashlib.sha256("\n".join(_made_of(function, 0)).encode()).hexdigest()


def program_of(case: Case, axes: Axes, key: Any) -> str:
    """A digest of its program at the first point of its static axes, or that it has none there. Cost: a trace."""
    static, cases = next(axes.groups())
    moving = {name: values[0] for name, values in axes.arrays(cases[:1]).items()}
    try:
        text = program_text(lambda values, key: jax.tree.leaves(case({**static, **values}, key)), moving, key)
    except Exception as error:  # what a case raises is told of that case
        return f"none: {type(error).__name__}"
    return hashlib.sha256(text.encode()).hexdigest()


def folder_of(case: Case) -> Path | None:
    """Where its source lies, if that is known."""
    try:
        return Path(inspect.getsourcefile(_unwrapped(case.function)) or "").resolve(strict=True).parent
    except (TypeError, OSError):
        return None


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function) if callable(function) else function


def _made_of(value: Any, depth: int) -> Iterator[str]:
    """Words that two processes agree on; of objects without a lasting text, what they are."""
    parts = next((take(value) for kind, take in _PARTS if isinstance(value, kind)), None)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        yield f"{value.dtype} {value.shape} {hashlib.sha256(raw_bytes(value)).hexdigest()}"
    elif isinstance(value, bool | int | float | complex | str | bytes | None.__class__):
        yield repr(value)
    elif parts is not None and depth < DEPTH:
        yield type(value).__qualname__
        for part in parts:
            yield from _made_of(part, depth + 1)
    else:
        yield f"{type(value).__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _cells(function: types.FunctionType) -> list[Any]:
    """What it closes over, as far as it is there."""
    return [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]


DEPTH = 12
"""Of functions in functions and lists in lists, as far as they are told apart."""
_PARTS: tuple[tuple[Any, Callable[[Any], list[Any]]], ...] = (
    (functools.partial, lambda value: [value.func, value.args, value.keywords]),
    (types.MethodType, lambda value: [value.__func__, value.__self__]),
    (types.FunctionType, lambda value: [value.__code__, value.__defaults__, value.__kwdefaults__, _cells(value)]),
    (types.CodeType, lambda value: [value.co_name, value.co_code, value.co_names, value.co_consts]),
    (frozenset, lambda value: sorted(value, key=repr)),
    (list | tuple, list),
    (Mapping, lambda value: [part for item in value.items() for part in item]),
)
"""Kinds of values that are made of others."""
