"""Traced programs: what is inside, comparing, naming source lines."""

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

from localhessian._programs import traced

CALLS = (primitives.jit_p, primitives.remat_p, primitives.call_p, primitives.closed_call_p)
CUSTOM = (primitives.custom_jvp_call_p, primitives.custom_vjp_call_p)
MARKS = "localhessian:"
"""What the names of marks begin with; which they are is no matter for what a program computes."""
_LIBRARIES = re.compile(r"[/\\](jax|jaxlib|flax|equinox|localhessian)[/\\]")


def sub_jaxprs(eqn: core.JaxprEqn) -> Iterator[tuple[core.Jaxpr, Sequence[Any]]]:
    """The programs inside an equation, with their constants."""
    for item in _params(eqn):
        if isinstance(item, core.ClosedJaxpr):
            yield item.jaxpr, item.consts
        elif isinstance(item, core.Jaxpr):
            yield item, ()


def _params(eqn: core.JaxprEqn) -> Iterator[Any]:
    """The settings of an equation, and the entries of those that are lists."""
    for value in eqn.params.values():
        yield from value if isinstance(value, (tuple, list)) else (value,)


def where(eqn: core.JaxprEqn, of_the_user: bool = False) -> str:
    """The user's source line of an equation, with the name of the function it is in; else a library's, or nothing."""
    frames = getattr(eqn.source_info.traceback, "frames", ())
    own = [frame for frame in frames if not _LIBRARIES.search(frame.file_name)]
    for frame in own or (() if of_the_user else frames):
        return f"{frame.file_name}:{frame.line_num} (`{frame.function_name}`)"
    return "" if of_the_user else "an unknown line"


def fingerprint(closed: core.ClosedJaxpr, labels: Any, *, lasting: bool = False) -> str:
    """A text that equal programs share: equations with variables renamed in order, and the values of the constants.

    Rules of differentiation that are Python functions (custom_jvp, custom_vjp) do not show in it, so for a program
    that has some the text of its derivative is added. `lasting`: that of another process may be compared with it;
    functions of the host are then told by their names and code.
    """
    return "\n".join([str(labels), text_of(closed, lasting), *text_of_rules(closed, lasting)])


def text_of_rules(closed: core.ClosedJaxpr, lasting: bool = False) -> tuple[str, ...]:
    """The text of the derivative of a program with rules of its own; nothing of any other. It may have none: raises."""
    return (text_of(_derivative(closed), lasting),) if has_custom_rule(closed.jaxpr) else ()


def program_text(function: Callable, *arguments: Any) -> str:
    """The lasting fingerprint of a function's program for arguments of these shapes. Cost: a trace."""
    return fingerprint(traced(function, *arguments)[0], (), lasting=True)


def text_of(closed: core.ClosedJaxpr, lasting: bool = False) -> str:
    """A text that programs share whose equations and constants are equal, to the bit; alive at the same time."""
    digests = [_digest(const) for const in _all_consts(closed.jaxpr, closed.consts)]
    text = re.sub(rf" at 0x[0-9a-f]+|name={MARKS}[^\]]*", "", str(closed.jaxpr))
    return " ".join([text, *digests, *_unseen(closed.jaxpr, _name_of if lasting else _identity)])


def _unseen(jaxpr: core.Jaxpr, name: Callable[[Any], str]) -> Iterator[str]:
    """What printing leaves out: the last digits of numbers, and which functions of the host are called."""
    for eqn in jaxpr.eqns:
        yield from _bits(eqn.invars)
        if eqn.primitive not in (*CUSTOM, primitives.remat_p):
            yield from (name(value) for value in _params(eqn) if _is_function(value))
        for inner, _ in sub_jaxprs(eqn):
            yield from _unseen(inner, name)
    yield from _bits(jaxpr.outvars)


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
    return callable(value) and not isinstance(value, type | core.Jaxpr | core.ClosedJaxpr)


def _all_consts(jaxpr: core.Jaxpr, consts: Sequence[Any]) -> Iterator[Any]:
    yield from consts
    for eqn in jaxpr.eqns:
        for inner, inner_consts in sub_jaxprs(eqn):
            yield from _all_consts(inner, inner_consts)


def _digest(const: Any) -> str:
    if isinstance(const, jax.core.Tracer):
        return f"id:{id(const)}"
    if jnp.issubdtype(const.dtype, jax.dtypes.prng_key):
        const = jax.random.key_data(const)
    return hashlib.sha256(np.ascontiguousarray(const).tobytes()).hexdigest()


def has_custom_rule(jaxpr: core.Jaxpr) -> bool:
    """Whether a program holds rules of differentiation that are Python functions, at any depth."""
    return any(
        eqn.primitive in CUSTOM or any(has_custom_rule(inner) for inner, _ in sub_jaxprs(eqn)) for eqn in jaxpr.eqns
    )


def _derivative(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    run: Callable = core.jaxpr_as_fun(closed)

    def vjp(primals: list[Any], cotangents: list[Any]) -> Any:
        outputs, pull = jax.vjp(lambda args: run(*args), primals)
        zeros = [
            c if jnp.issubdtype(jnp.result_type(o), jnp.floating) else _no_tangent(o)
            for o, c in zip(outputs, cotangents, strict=True)
        ]
        return [g for g in pull(zeros)[0] if g.dtype != jax.dtypes.float0]

    return jax.make_jaxpr(vjp)(closed.in_avals, closed.out_avals)


def _no_tangent(value: Any) -> np.ndarray:
    return np.zeros(np.shape(value), jax.dtypes.float0)
