"""Programs made of other programs: some of their equations, or others in their place."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.extend.core import primitives

from localhessian._programs._inside import Equation, Program, is_program, variables


def assemble(
    constvars: Sequence[Any],
    consts: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    equations: Sequence[Equation],
) -> Program:
    """A program of some equations of another."""
    effects = frozenset().union(*(eqn.effects for eqn in equations))
    names = core.DebugInfo("localhessian", "block", ("",) * len(inputs), ("",) * len(outputs))
    jaxpr = core.Jaxpr(list(constvars), list(inputs), list(outputs), list(equations), effects, names)
    return core.ClosedJaxpr(jaxpr, list(consts))


def alone(eqn: Equation) -> Program:
    """One equation, of its operands that are variables, each once."""
    return assemble((), (), list(dict.fromkeys(variables(eqn.invars))), eqn.outvars, [eqn])


def live(program: Program) -> Program:
    """Without the equations that no result depends on."""
    jaxpr = program.jaxpr
    needed, kept = set(variables(jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(variables(eqn.invars))
            kept.append(eqn)
    return assemble(jaxpr.constvars, program.consts, jaxpr.invars, jaxpr.outvars, kept[::-1])


Rule = Callable[[Equation, bool], Callable[..., Any] | None]
"""From an equation, and whether its result is transposed next, to a function that does the same; None leaves it."""


def rewritten(program: Any, instead: Rule, done: dict[int, Any] | None = None) -> Any:
    """The program, with its constants or without, with equations replaced at any depth; itself where none is.

    Args:
        program: To be rewritten.
        instead: What takes the place of an equation.
        done: Programs by their ids, of the same walk: one that many equations hold, as equal layers do, stays one.
    """
    done = {} if done is None else done
    if id(program) not in done:
        inner = getattr(program, "jaxpr", program)  # newer JAX knows closed programs only
        turned = {id(eqn.invars[0]) for eqn in inner.eqns if eqn.primitive is primitives.transpose_p}
        equations = [_replaced(eqn, any(id(v) in turned for v in eqn.outvars), instead, done) for eqn in inner.eqns]
        other = inner if all(map(operator.is_, equations, inner.eqns)) else inner.replace(eqns=equations)
        done[id(program)] = other if inner is program else program if other is inner else program.replace(jaxpr=other)
    return done[id(program)]


def run_rewritten(function: Callable[..., Any], instead: Rule, *args: Any) -> Any:
    """function(*args), to be traced, with equations of its program replaced."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
    leaves = core.jaxpr_as_fun(rewritten(closed, instead))(*jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(out), leaves)


def _replaced(eqn: Equation, turned: bool, instead: Rule, done: dict[int, Any]) -> Equation:
    function = instead(eqn, turned)
    if function is not None:
        (call,) = jax.make_jaxpr(jax.jit(function))(*(atom.aval for atom in eqn.invars)).eqns
        return eqn.replace(primitive=call.primitive, params=call.params)
    params = {name: _inside_replaced(value, instead, done) for name, value in eqn.params.items()}
    return eqn if all(params[name] is value for name, value in eqn.params.items()) else eqn.replace(params=params)


def _inside_replaced(value: Any, instead: Rule, done: dict[int, Any]) -> Any:
    """A setting of an equation, a program or a list of them (the branches of a condition), with theirs replaced."""
    if is_program(value):
        return rewritten(value, instead, done)
    if type(value) in {tuple, list} and any(map(is_program, value)):
        replaced = type(value)(_inside_replaced(one, instead, done) for one in value)
        return value if all(map(operator.is_, replaced, value)) else replaced
    return value
