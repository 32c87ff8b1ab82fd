"""What is inside a traced program: one walk over programs and equations at any depth, and what counts as a call.

Everything that is said of JAX's kinds of equations is said here, for the versions that this package runs on.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

Program: TypeAlias = core.ClosedJaxpr
Equation: TypeAlias = core.JaxprEqn

_CALLS = (primitives.jit_p, primitives.remat_p, primitives.call_p, primitives.closed_call_p)
_CUSTOM = (primitives.custom_jvp_call_p, primitives.custom_vjp_call_p)
_MAPPED = re.compile(r"^(\w+\()+")
_LIBRARIES = re.compile(r"[/\\](jax|jaxlib|flax|equinox|localhessian)[/\\]")


def traced(function: Any, *arguments: Any) -> tuple[Program, Any]:
    """Its program for arguments of these shapes and the shapes of its result, whatever JAX remembers of it. A trace."""
    return jax.make_jaxpr(lambda *given: function(*given), return_shape=True)(*arguments)  # noqa: PLW0108  to JAX another


def is_program(value: Any) -> bool:
    """Whether a setting of an equation is a program, with its constants or without."""
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def settings(eqn: Equation) -> Iterator[Any]:
    """The settings of an equation, and the entries of those that are lists."""
    for value in eqn.params.values():
        yield from value if isinstance(value, tuple | list) else (value,)


def inside(eqn: Equation) -> Iterator[Program]:
    """The programs that an equation holds: of a call one, of a loop or a branch one or several."""
    yield from (closed(value) for value in settings(eqn) if is_program(value))


def closed(program: Any) -> Program:
    """With its constants; one without them has none."""
    return program if isinstance(program, core.ClosedJaxpr) else core.ClosedJaxpr(program, ())


def entered(eqn: Equation, custom: bool = True) -> Program | None:
    """The program of a call, which takes the operands of the call and gives its results; None of any other equation.

    Args:
        eqn: Calls are `jax.jit`, `jax.checkpoint` and their like. Loops and branches are none: what they hold takes
            other operands, or runs other than once.
        custom: Whether functions with rules of differentiation of their own are; inside, the rule is lost.
    """
    if eqn.primitive in _CALLS or (custom and is_custom(eqn)):
        return next(inside(eqn))
    return None


def is_custom(eqn: Equation) -> bool:
    """Whether it is a function with a rule of differentiation of its own."""
    return eqn.primitive in _CUSTOM


def programs(program: Any) -> Iterator[Program]:
    """A program, and those inside its equations at any depth; in program order."""
    outer = closed(program)
    yield outer
    for eqn in outer.jaxpr.eqns:
        for inner in inside(eqn):
            yield from programs(inner)


def equations(program: Any) -> Iterator[Equation]:
    """The equations of a program at any depth, in program order: what an equation holds comes right after it."""
    for eqn in closed(program).jaxpr.eqns:
        yield eqn
        for inner in inside(eqn):
            yield from equations(inner)


def is_variable(atom: Any) -> bool:
    """Whether an operand is a variable, not a number written into the program."""
    return isinstance(atom, core.Var)


def variables(atoms: Iterable[Any]) -> list[Any]:
    """Those that are variables."""
    return list(filter(is_variable, atoms))


def has_custom_rule(program: Any) -> bool:
    """Whether a program holds rules of differentiation that are Python functions, at any depth."""
    return any(map(is_custom, equations(program)))


def floating_types(program: Any) -> Iterator[Any]:
    """The floating-point types that a program computes in, at any depth."""
    for eqn in equations(program):
        for atom in eqn.outvars:
            dtype = getattr(atom.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                yield dtype


def named_scopes(eqn: Equation) -> tuple[str, ...]:
    """The `jax.named_scope`s that an equation was traced in, the outermost first, also where they were mapped."""
    words = str(eqn.source_info.name_stack).split("/")
    return tuple(_MAPPED.sub("", word).rstrip(")") for word in words if word)


def where(eqn: Equation, of_the_user: bool = False) -> str:
    """The user's source line of an equation, with the name of the function it is in; else a library's, or nothing."""
    frames = getattr(eqn.source_info.traceback, "frames", ())
    own = [frame for frame in frames if not _LIBRARIES.search(frame.file_name)]
    for frame in own or (() if of_the_user else frames):
        return f"{frame.file_name}:{frame.line_num} (`{frame.function_name}`)"
    return "" if of_the_user else "an unknown line"
