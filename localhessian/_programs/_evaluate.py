"""A traced program run equation by equation: as JAX runs it, or by rules on values of another kind."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from jax.extend import core

from localhessian._programs._inside import Equation, Program, is_variable, variables
from localhessian._programs._rewrite import assemble

Results: TypeAlias = Sequence[Any] | Mapping[Any, Any]


def run(program: Program, *values: Any) -> list[Any]:
    """A program on arrays, as JAX runs it."""
    return core.jaxpr_as_fun(program)(*values)


def bind(eqn: Equation, values: Sequence[Any]) -> list[Any]:
    """Run one equation as JAX does, with its own source line: calls and custom rules need more than their primitive."""
    held = [(atom, value) for atom, value in zip(eqn.invars, values, strict=True) if is_variable(atom)]
    unique = dict(held)
    return run(assemble((), (), list(unique), eqn.outvars, [eqn]), *unique.values())


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
