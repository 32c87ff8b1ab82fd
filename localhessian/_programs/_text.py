"""Texts that equal programs share."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from localhessian._programs._evaluate import run
from localhessian._programs._inside import (
    Equation,
    Program,
    inside,
    is_custom,
    is_program,
    programs,
    settings,
    traced,
)
from localhessian._programs._rewrite import alone

MARKS = "localhessian:"
"""What the names of marks begin with; which they are is no matter for what a program computes."""


def fingerprint(program: Program, labels: Any, *, lasting: bool = False) -> str:
    """A text that equal programs share: equations with variables renamed in order, and the values of the constants.

    Rules of differentiation that are Python functions (custom_jvp, custom_vjp) do not show in it, so the text of what
    each gives is added. `lasting`: that of another process may be compared with it; functions of the host are then told
    by their names and code.
    """
    return "\n".join([str(labels), text_of(program, lasting), *text_of_rules(program, lasting)])


def program_text(function: Callable[..., Any], *arguments: Any, differentiated: bool = True) -> str:
    """The lasting fingerprint of a function's program for arguments of these shapes. Cost: a trace, and its rules.

    Args:
        function: Of arrays.
        arguments: Or their shapes.
        differentiated: Whether it is to be differentiated, so that its rules of differentiation matter.
    """
    program = traced(function, *arguments)[0]
    return fingerprint(program, (), lasting=True) if differentiated else text_of(program, lasting=True)


NO_DERIVATIVE = (TypeError, ValueError, NotImplementedError)
"""What JAX and rules of differentiation raise where there is none."""


class Text:
    """What equal programs share, with labels; rules, which take a trace, are looked at where the rest is equal."""

    def __init__(self, program: Program, labels: Any) -> None:
        """To be compared while the program is alive."""
        self.program, self.labels = program, labels

    def __eq__(self, other: object) -> bool:
        """Whether two programs compute the same, also when differentiated."""
        if not isinstance(other, Text):
            return NotImplemented
        return self is other or (self._plain == other._plain and self._rules == other._rules)

    def __hash__(self) -> int:
        """Without the rules."""
        return hash(self._plain)

    @functools.cached_property
    def _plain(self) -> str:
        return f"{self.labels}\n{text_of(self.program)}"

    @functools.cached_property
    def _rules(self) -> tuple[str, ...] | None:
        """None where there is no derivative: that is told where one is taken."""
        try:
            return text_of_rules(self.program)
        except NO_DERIVATIVE:
            return None


def text_of_rules(program: Program, lasting: bool = False) -> tuple[str, ...]:
    """The derivative of each equation with a rule of its own, the only ones in doubt. Raises if there is none."""
    return tuple(text_of(_derivative(alone(eqn)), lasting) for eqn in _custom(program))


def _custom(program: Program) -> Iterator[Equation]:
    """Those at any depth; what is inside of one is differentiated by its rule."""
    for eqn in program.jaxpr.eqns:
        if is_custom(eqn):
            yield eqn
        else:
            for inner in inside(eqn):
                yield from _custom(inner)


def text_of(program: Program, lasting: bool = False) -> str:
    """A text that programs share whose equations and constants are equal, to the bit; alive at the same time."""
    text = re.sub(rf" at 0x[0-9a-f]+|name={MARKS}[^\]]*", "", str(program.jaxpr))
    all_of_them = list(programs(program))
    digests = [_digest(const) for one in all_of_them for const in one.consts]
    unseen = [word for one in all_of_them for word in _unseen(one, _name_of if lasting else _identity)]
    return " ".join([text, *digests, *unseen])


def _unseen(program: Program, name: Callable[[Any], str]) -> Iterator[str]:
    """What printing leaves out: the last digits of numbers, and which functions of the host are called."""
    for eqn in program.jaxpr.eqns:
        yield from _bits(eqn.invars)
        if not is_custom(eqn) and eqn.primitive is not primitives.remat_p:
            yield from (name(value) for value in settings(eqn) if _is_function(value))
    yield from _bits(program.jaxpr.outvars)


def _identity(function: Any) -> str:
    return f"id:{id(function)}"


def _name_of(function: Any) -> str:
    """What two processes agree on: a name, and the code of what was written in Python."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    body = "" if code is None else hashlib.sha256(code.co_code).hexdigest()
    return f"{getattr(function, '__qualname__', type(function).__qualname__)} {body}"


def _bits(atoms: Sequence[Any]) -> Iterator[str]:
    for atom in atoms:
        if isinstance(atom, core.Literal) and jnp.issubdtype(jnp.result_type(atom.val), jnp.inexact):
            yield np.asarray(atom.val).tobytes().hex()


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type) and not is_program(value)


def _digest(const: Any) -> str:
    if isinstance(const, jax.core.Tracer):
        return f"id:{id(const)}"
    if jnp.issubdtype(const.dtype, jax.dtypes.prng_key):
        const = jax.random.key_data(const)
    return hashlib.sha256(np.ascontiguousarray(const).tobytes()).hexdigest()


def _derivative(program: Program) -> Program:
    def vjp(primals: list[Any], cotangents: list[Any]) -> Any:
        outputs, pull = jax.vjp(lambda args: run(program, *args), primals)
        zeros = [
            c if jnp.issubdtype(jnp.result_type(o), jnp.floating) else _no_tangent(o)
            for o, c in zip(outputs, cotangents, strict=True)
        ]
        return [g for g in pull(zeros)[0] if g.dtype != jax.dtypes.float0]

    return jax.make_jaxpr(vjp)(program.in_avals, program.out_avals)


def _no_tangent(value: Any) -> np.ndarray:
    return np.zeros(np.shape(value), jax.dtypes.float0)
