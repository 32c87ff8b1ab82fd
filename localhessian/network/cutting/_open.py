"""Programs with marks: opening the calls that hold them, unrolling scans over layers."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from localhessian._programs import bind
from localhessian.network._jaxpr import CALLS, sub_jaxprs, where
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


def evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Run a program with its marks brought to the top level: calls that hold marks are opened, scans unrolled."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        values = [read(atom) for atom in eqn.invars]
        aligned = _aligned_axes(eqn)
        if aligned is not None:
            results = [jnp.transpose(_value(values[0]), aligned)]
            if not isinstance(eqn.invars[0], core.Literal):
                # Later uses read the marked value back, so that a skip around the mark does not jump over it.
                env[eqn.invars[0]] = jnp.transpose(results[0], np.argsort(aligned).tolist())
        elif _must_open(eqn, values):
            results = _open(eqn, values)
        else:
            results = bind(eqn, [_value(value) for value in values])
        env.update(zip(eqn.outvars, results, strict=True))
    return [_value(read(atom)) for atom in jaxpr.outvars]


def tag_of(eqn: core.JaxprEqn) -> _mark.Tag | None:
    """The tag of a marked leaf, None for every other equation."""
    return _mark.parse(eqn.params["name"]) if eqn.primitive is primitives.name_p else None


def _value(value: Any) -> Any:
    return value.value() if isinstance(value, Stack) else value


def _must_open(eqn: core.JaxprEqn, values: Sequence[Any]) -> bool:
    """Whether an equation holds marks to cut at; proposed ones do not take apart what is no list of layers."""
    if _mark.END in (kinds := set(_mark_kinds(eqn))):
        return True
    if eqn.primitive is primitives.scan_p:
        fixed, carried = _counts(eqn)
        return bool(kinds) and any(isinstance(value, Stack) for value in values[fixed + carried :])
    return bool(kinds) and eqn.primitive in CALLS


def _mark_kinds(eqn: core.JaxprEqn) -> Iterator[str]:
    for jaxpr, _ in sub_jaxprs(eqn):
        for inner in jaxpr.eqns:
            tag = tag_of(inner)
            yield from (tag.kind,) if tag else _mark_kinds(inner)


def _counts(eqn: core.JaxprEqn) -> tuple[int, int]:
    """How many inputs of a scan stay the same, and how many are carried; the rest is scanned over.

    Told from the shapes, because the parameters of the equation that say so are JAX's own affair: what is scanned over
    or stacked has one axis more outside than in the body.
    """
    body, _ = next(sub_jaxprs(eqn))
    carried = sum(map(_same_rank, eqn.outvars, body.outvars))
    return sum(map(_same_rank, eqn.invars, body.invars)) - carried, carried


def _same_rank(outer: Any, inner: Any) -> bool:
    return len(outer.aval.shape) == len(inner.aval.shape)


def _aligned_axes(eqn: core.JaxprEqn) -> tuple[int, ...] | None:
    """The order of axes in which the first half of a mark hands its value on, None for every other equation."""
    if eqn.primitive is not primitives.remat_p:
        return None
    inner = eqn.params["jaxpr"].eqns
    if not any(e.primitive is primitives.name_p and e.params["name"] == _mark.ALIGN for e in inner):
        return None
    axes = tuple(range(len(eqn.invars[0].aval.shape)))  # type: ignore[attr-defined]
    for step in inner:
        if "permutation" in step.params:
            axes = tuple(axes[i] for i in step.params["permutation"])
        elif step.primitive is not primitives.name_p:
            return None
    return axes


def _open(eqn: core.JaxprEqn, values: Sequence[Any]) -> list[Any]:
    if eqn.primitive is primitives.scan_p:
        return _unroll(eqn, values)
    if eqn.primitive in CALLS:
        jaxpr, consts = next(sub_jaxprs(eqn))
        return evaluate(jaxpr, consts, values)
    names = sorted(set(mark_names(eqn)))
    raise CutError(
        f"the mark `{names[0]}` lies inside `{eqn.primitive.name}` (at {where(eqn)}), which cannot be cut: only jit, "
        "jax.checkpoint and lax.scan over layers can. Move the mark outside it."
    )


def mark_names(eqn: core.JaxprEqn) -> Iterator[str]:
    """The names of the marks in an equation, or of the one that it is, in program order."""
    tag = tag_of(eqn)
    if tag is not None:
        yield tag.name
    for jaxpr, _ in sub_jaxprs(eqn):
        for inner in jaxpr.eqns:
            yield from mark_names(inner)


def _unroll(eqn: core.JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """The iterations of a scan one after the other, each with its slice of what is scanned over."""
    p = eqn.params
    fixed, carry, scanned = _parts(values, *_counts(eqn))
    body, consts = next(sub_jaxprs(eqn))
    order = range(p["length"])
    collected: dict[int, list[Any]] = {}
    for i in reversed(order) if p["reverse"] else order:
        slices = [x.part(i) if isinstance(x, Stack) else jax.lax.index_in_dim(x, i, keepdims=False) for x in scanned]
        results = evaluate(body, consts, [*fixed, *carry, *slices])
        carry, collected[i] = results[: len(carry)], results[len(carry) :]
    stacked = [jnp.stack(column) for column in zip(*(collected[i] for i in order), strict=True)]
    return [*carry, *stacked]


def _parts(values: Sequence[Any], first: int, second: int) -> tuple[list[Any], list[Any], list[Any]]:
    values = list(values)
    return values[:first], values[first : first + second], values[first + second :]
