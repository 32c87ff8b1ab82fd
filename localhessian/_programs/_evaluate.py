"""A traced program run equation by equation: as JAX runs it, or by rules on values of another kind."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend import core

from localhessian._programs._inside import Equation, Program, inside, is_variable, variables
from localhessian._programs._rewrite import alone

Results: TypeAlias = Sequence[Any] | Mapping[Any, Any]


def run(program: Program, *values: Any) -> list[Any]:
    """A program on arrays, as JAX runs it."""
    return core.jaxpr_as_fun(program)(*values)


def bind(eqn: Equation, values: Sequence[Any]) -> list[Any]:
    """Run one equation as JAX does, with its own source line: calls and custom rules need more than their primitive."""
    held = [(atom, value) for atom, value in zip(eqn.invars, values, strict=True) if is_variable(atom)]
    return run(alone(eqn), *dict(held).values())


def evaluate(
    program: Program,
    values: Sequence[Any],
    rule: Callable[[Equation, list[Any]], Results] = bind,
    constant: Callable[[Any], Any] = lambda value: value,
) -> list[Any]:
    """Run a program, its equations by a rule.

    A value is dropped after its last use: they may be as large as activations.

    Args:
        program: With its constants.
        values: Of its inputs; whatever the rule takes.
        rule: From an equation and the values of its operands to those of its results; or to a mapping from variables,
            which may also give operands a value that later equations read instead. It enters calls by calling
            `evaluate` on what is `entered`. Default: as JAX does.
        constant: What stands for a constant or a number written into the program.
    """
    jaxpr = program.jaxpr
    env = dict(zip(jaxpr.constvars, map(constant, program.consts), strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))
    last = {atom: eqn for eqn in jaxpr.eqns for atom in variables(eqn.invars)}
    kept = set(variables(jaxpr.outvars))

    def read(atom: Any) -> Any:
        return env[atom] if is_variable(atom) else constant(atom.val)

    for eqn in jaxpr.eqns:
        results = rule(eqn, [read(atom) for atom in eqn.invars])
        env.update(results if isinstance(results, Mapping) else zip(eqn.outvars, results, strict=True))
        for atom in variables(eqn.invars):
            if last[atom] is eqn and atom not in kept:
                env.pop(atom, None)
    return [read(atom) for atom in jaxpr.outvars]


def scanned(eqn: Equation, values: Sequence[Any]) -> list[Any]:
    """Of the operands of a scan those that it takes apart."""
    return _split(eqn, values)[2]


def unrolled(
    eqn: Equation,
    values: Sequence[Any],
    step: Callable[[Program, list[Any]], list[Any]],
    part: Callable[[Any, int], Any] = lambda value, i: jax.lax.index_in_dim(value, i, keepdims=False),
) -> list[Any]:
    """The iterations of a scan one after the other.

    Args:
        eqn: The scan.
        values: Of its operands.
        step: From the body and the values of its inputs to those of its results.
        part: Slice i of what is scanned over.
    """
    fixed, carry, apart = _split(eqn, values)
    body, order = next(inside(eqn)), range(eqn.params["length"])
    collected: dict[int, list[Any]] = {}
    for i in reversed(order) if eqn.params["reverse"] else order:
        results = step(body, [*fixed, *carry, *(part(value, i) for value in apart)])
        carry, collected[i] = results[: len(carry)], results[len(carry) :]
    stacked = [jnp.stack(column) for column in zip(*(collected[i] for i in order), strict=True)]
    return [*carry, *stacked]


def _split(eqn: Equation, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The operands of a scan that stay the same, that are carried, and that are scanned over.

    Told from the shapes, because the parameters of the equation that say so are JAX's own affair: what is scanned over
    or stacked has one axis more outside than in the body.
    """
    body = next(inside(eqn)).jaxpr
    carried = sum(map(_same_rank, eqn.outvars, body.outvars))
    first = sum(map(_same_rank, eqn.invars, body.invars)) - carried
    values = list(values)
    return values[:first], values[first : first + carried], values[first + carried :]


def _same_rank(outer: Any, inner: Any) -> bool:
    return len(outer.aval.shape) == len(inner.aval.shape)
