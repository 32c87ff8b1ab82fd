"""Programs that JAX traced: parts of them as programs of their own, and run as JAX runs them."""

from collections.abc import Sequence
from typing import Any

from jax.extend import core


def bind(eqn: core.JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """Run one equation as JAX does, with its own source line: calls and custom rules need more than their primitive."""
    held = [(atom, value) for atom, value in zip(eqn.invars, values, strict=True) if isinstance(atom, core.Var)]
    unique = dict(held)
    one = assemble((), (), list(unique), eqn.outvars, [eqn])
    return core.jaxpr_as_fun(one)(*unique.values())


def assemble(
    constvars: Sequence[Any],
    consts: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    equations: Sequence[core.JaxprEqn],
) -> core.ClosedJaxpr:
    """A program of some equations of another."""
    effects = frozenset().union(*(eqn.effects for eqn in equations))
    names = core.DebugInfo("localhessian", "block", ("",) * len(inputs), ("",) * len(outputs))
    jaxpr = core.Jaxpr(list(constvars), list(inputs), list(outputs), list(equations), effects, names)
    return core.ClosedJaxpr(jaxpr, list(consts))
