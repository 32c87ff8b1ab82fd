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


def _must_open(eqn: Equation, values: Sequence[Any]) -> bool:
    """Whether an equation holds marks to cut at; proposed ones do not take apart what is no list of layers."""
    if _mark.END in (kinds := set(_mark_kinds(eqn))):
        return True
    if eqn.primitive is primitives.scan_p:
        fixed, carried = _counts(eqn)
        return bool(kinds) and any(isinstance(value, Stack) for value in values[fixed + carried :])
    return bool(kinds) and entered(eqn, custom=False) is not None


def _mark_kinds(eqn: Equation) -> Iterator[str]:
    yield from (tag.kind for one in _held(eqn) if (tag := tag_of(one)) is not None)


def _counts(eqn: Equation) -> tuple[int, int]:
    """How many inputs of a scan stay the same, and how many are carried; the rest is scanned over.

    Told from the shapes, because the parameters of the equation that say so are JAX's own affair: what is scanned over
    or stacked has one axis more outside than in the body.
    """
    body = next(inside(eqn)).jaxpr
    carried = sum(map(_same_rank, eqn.outvars, body.outvars))
    return sum(map(_same_rank, eqn.invars, body.invars)) - carried, carried


def _same_rank(outer: Any, inner: Any) -> bool:
    return len(outer.aval.shape) == len(inner.aval.shape)


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
        return _unroll(eqn, values)
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


def _unroll(eqn: Equation, values: Sequence[Any]) -> list[Any]:
    """The iterations of a scan one after the other, each with its slice of what is scanned over."""
    p = eqn.params
    fixed, carry, scanned = _parts(values, *_counts(eqn))
    body = next(inside(eqn))
    order = range(p["length"])
    collected: dict[int, list[Any]] = {}
    for i in reversed(order) if p["reverse"] else order:
        slices = [x.part(i) if isinstance(x, Stack) else jax.lax.index_in_dim(x, i, keepdims=False) for x in scanned]
        results = opened(body, [*fixed, *carry, *slices])
        carry, collected[i] = results[: len(carry)], results[len(carry) :]
    stacked = [jnp.stack(column) for column in zip(*(collected[i] for i in order), strict=True)]
    return [*carry, *stacked]


def _parts(values: Sequence[Any], first: int, second: int) -> tuple[list[Any], list[Any], list[Any]]:
    values = list(values)
    return values[:first], values[first : first + second], values[first + second :]
