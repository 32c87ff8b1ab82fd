"""Marking what leaves the `jax.named_scope`s of a function: code that holds no marks says with them where it is."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from localhessian._programs import (
    Equation,
    Program,
    bind,
    entered,
    evaluate,
    is_variable,
    named_scopes,
    traced,
    variables,
)
from localhessian._types import Activations, Context, Params
from localhessian.network.cutting._mark import OUT, tagged
from localhessian.network.cutting._submodules import At, Path, Submodule, choose


def marked_at_scopes(fn: Callable[..., Any], at: At, *arguments: Any) -> Callable[..., Any]:
    """A function of (params, x, context) with marks on what leaves the scopes chosen; ValueError if there is none."""
    found = scopes_of(fn, *arguments)
    if not found:
        raise ValueError('`at`: the function holds no `jax.named_scope`, so write `h = lh.mark(h, "name")` instead.')
    asked = choose([Submodule(path, path, True, False) for path in found], at, "scope")

    def marked(params: Params, x: Activations, context: Context) -> Any:
        program, result = traced(fn, params, x, context)
        values = jax.tree.leaves((params, x, context))
        return jax.tree.unflatten(jax.tree.structure(result), _run(program, values, (), set(asked)))

    return marked


def scopes_of(fn: Callable[..., Any], *arguments: Any) -> list[Path]:
    """The scopes of a function, in the order in which they are entered; those that only hold others first."""
    program, _ = traced(fn, *arguments)
    return list(dict.fromkeys(path[:i] for path in _paths(program, ()) for i in range(1, len(path) + 1)))


def _paths(program: Program, outer: Path) -> Iterator[Path]:
    for eqn in program.jaxpr.eqns:
        yield (path := outer + named_scopes(eqn))
        if (inner := entered(eqn, custom=False)) is not None:
            yield from _paths(inner, path)


class _Visit(NamedTuple):
    """Equations of one scope in a row: the last one, and what later equations use of what they make."""

    path: Path
    last: Equation
    leaving: list[Any]


def _run(program: Program, values: Sequence[Any], outer: Path, asked: set[Path]) -> list[Any]:
    """A program with marks on what leaves its scopes; calls that hold some are opened."""
    visits = [visit for path in sorted(asked, key=len, reverse=True) for visit in _visits(program, outer, path)]
    leave = {variable for visit in visits for variable in visit.leaving}
    made: dict[Any, Any] = {}

    def rule(eqn: Equation, operands: list[Any]) -> dict[Any, Any]:
        inner, path = entered(eqn, custom=False), outer + named_scopes(eqn)
        if inner is not None and any(found in asked and len(found) > len(path) for found in _paths(inner, path)):
            results = _run(inner, operands, path, asked)
        else:
            results = bind(eqn, operands)
        own = dict(zip(eqn.outvars, results, strict=True))
        made.update({variable: value for variable, value in own.items() if variable in leave})
        for visit in visits:
            if visit.last is eqn and visit.leaving:
                marked = tagged(tuple(made[variable] for variable in visit.leaving), ".".join(visit.path), OUT)
                made.update(zip(visit.leaving, marked, strict=True))
                own.update({variable: made[variable] for variable in visit.leaving})
        return own

    return evaluate(program, values, rule)


def _visits(program: Program, outer: Path, path: Path) -> Iterator[_Visit]:
    equations = program.jaxpr.eqns
    within = [(outer + named_scopes(eqn))[: len(path)] == path and len(outer) < len(path) for eqn in equations]
    begin = 0
    for inside, run in itertools.groupby(within):
        begin, first = begin + len(list(run)), begin
        if inside:
            made = [v for eqn in equations[first:begin] for v in eqn.outvars if is_variable(v)]
            later = {*variables(program.jaxpr.outvars), *(v for e in equations[begin:] for v in variables(e.invars))}
            floats = [v for v in made if v in later and jnp.issubdtype(v.aval.dtype, jnp.floating)]
            yield _Visit(path, equations[begin - 1], floats)
