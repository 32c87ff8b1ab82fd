"""Programs with marks: opening the calls that hold them, unrolling scans over layers."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._programs import (
    Equation,
    Program,
    bind,
    entered,
    equations,
    evaluate,
    inside,
    primitives,
    scanned,
    unrolled,
    variables,
    where,
)
from localhessian.network.cutting import _mark


class CutError(ValueError):
    """A function cannot be cut where it was asked to; the message says why and what to do."""


class Stack:
    """A parameter held as its slices along the leading axis, for a scan over layers to take apart."""

    def __init__(self, parts: Sequence[jax.Array]) -> None:
        """One array for each layer."""
        self.parts = parts

    def part(self, i: int) -> jax.Array:
        """Slice i of the leading axis."""
        return self.parts[i]

    def value(self) -> jax.Array:
        """The whole array."""
        return jnp.stack(self.parts)


class Whole(Stack):
    """A parameter in one piece that notes whether a scan over layers takes it apart."""

    def __init__(self, array: jax.Array) -> None:
        """Not taken apart so far."""
        super().__init__(())
        self.array, self.taken_apart = array, False

    def part(self, i: int) -> jax.Array:
        """Slice i of the leading axis."""
        self.taken_apart = True
        return jax.lax.index_in_dim(self.array, i, keepdims=False)

    def value(self) -> jax.Array:
        """The whole array."""
        return self.array


def opened(program: Program, values: Sequence[Any]) -> list[Any]:
    """Run a program with its marks brought to the top level: calls that hold marks are opened, scans unrolled."""
    return [_value(value) for value in evaluate(program, values, _rule)]


def _rule(eqn: Equation, values: list[Any]) -> Any:
    aligned = _aligned_axes(eqn)
    if aligned is not None:
        result = jnp.transpose(_value(values[0]), aligned)
        # Later uses read the marked value back, so that a skip around the mark does not jump over it.
        back = dict.fromkeys(variables(eqn.invars), jnp.transpose(result, np.argsort(aligned).tolist()))
        return {**back, eqn.outvars[0]: result}
    return _open(eqn, values) if _must_open(eqn, values) else bind(eqn, [_value(value) for value in values])


def tag_of(eqn: Equation) -> _mark.Tag | None:
    """The tag of a marked leaf, None for every other equation."""
    return _mark.parse(eqn.params["name"]) if eqn.primitive is primitives.name_p else None


def _value(value: Any) -> Any:
    return value.value() if isinstance(value, Stack) else value


def _part(value: Any, i: int) -> Any:
    return value.part(i) if isinstance(value, Stack) else jax.lax.index_in_dim(value, i, keepdims=False)


def _must_open(eqn: Equation, values: Sequence[Any]) -> bool:
    """Whether an equation holds marks to cut at; proposed ones do not take apart what is no list of layers."""
    kinds = {tag.kind for one in _held(eqn) if (tag := tag_of(one)) is not None}
    if {_mark.END, _mark.OUT} & kinds:
        return True
    if eqn.primitive is primitives.scan_p:
        return bool(kinds) and any(isinstance(value, Stack) for value in scanned(eqn, values))
    return bool(kinds) and entered(eqn, custom=False) is not None


def _aligned_axes(eqn: Equation) -> tuple[int, ...] | None:
    """The order of axes in which the first half of a mark hands its value on, None for every other equation."""
    if eqn.primitive is not primitives.remat_p:
        return None
    inner = next(inside(eqn)).jaxpr.eqns
    if not any(e.primitive is primitives.name_p and e.params["name"] == _mark.ALIGN for e in inner):
        return None
    axes = tuple(range(len(eqn.invars[0].aval.shape)))  # type: ignore[attr-defined]
    for step in inner:
        if "permutation" in step.params:
            axes = tuple(axes[i] for i in step.params["permutation"])
        elif step.primitive is not primitives.name_p:
            return None
    return axes


def _open(eqn: Equation, values: Sequence[Any]) -> list[Any]:
    if eqn.primitive is primitives.scan_p:
        return unrolled(eqn, values, opened, _part)
    inner = entered(eqn, custom=False)
    if inner is not None:
        return opened(inner, values)
    names = sorted(set(mark_names(eqn)))
    raise CutError(
        f"the mark `{names[0]}` lies inside `{eqn.primitive.name}` (at {where(eqn)}), which cannot be cut: only jit, "
        "jax.checkpoint and lax.scan over layers can. Move the mark outside it."
    )


def mark_names(eqn: Equation) -> Iterator[str]:
    """The names of the marks in an equation, or of the one that it is, in program order."""
    yield from (tag.name for one in (eqn, *_held(eqn)) if (tag := tag_of(one)) is not None)


def _held(eqn: Equation) -> Iterator[Equation]:
    """The equations inside an equation, at any depth."""
    for program in inside(eqn):
        yield from equations(program)
