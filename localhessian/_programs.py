"""Programs that JAX traced: parts of them as programs of their own, and run as JAX runs them."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
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


def floating_types(jaxpr: Any) -> Iterator[Any]:
    """The floating-point types that a program computes in, at any depth."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    for eqn in inner.eqns:
        for atom in eqn.outvars:
            dtype = getattr(atom.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                yield dtype
        for value in eqn.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
                    yield from floating_types(item)
