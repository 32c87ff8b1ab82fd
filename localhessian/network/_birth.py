"""Where a number stops being finite: the first operation of a program that makes NaN or infinity of finite numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from localhessian._programs import bind
from localhessian.network._jaxpr import sub_jaxprs, where

UNDEFINED = (
    "an undefined operation (0/0, the derivative of a norm or a square root at 0, a softmax over a row that is masked "
    "entirely, a variance of zero)"
)


def birth(function: Callable, *arguments: Any) -> str:
    """In words: which operation of function(*arguments) is the first to leave the finite numbers, and on which line.

    Cost: the program's operations one after another; for the wording of an error only.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    leaves = jax.tree.leaves(arguments)
    outputs = core.jaxpr_as_fun(closed)(*leaves)
    is_nan = any(map(_has_nan, outputs))
    found = _first(closed.jaxpr, closed.consts, leaves, _has_nan if is_nan else _is_infinite)
    why = UNDEFINED if is_nan else "an overflow"
    if found is None:
        return why
    line = where(found, of_the_user=True)
    return f"{why}, first in `{found.primitive.name}`{line and f' at {line}'}"


def _first(jaxpr: core.Jaxpr, consts: Sequence[Any], values: Sequence[Any], wrong: Callable) -> core.JaxprEqn | None:
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, values, strict=True))
    for eqn in jaxpr.eqns:
        given = [atom.val if isinstance(atom, core.Literal) else env[atom] for atom in eqn.invars]
        results = bind(eqn, given)
        if any(map(wrong, results)) and not any(map(wrong, given)):
            inner = [program for program in sub_jaxprs(eqn) if len(program[0].invars) == len(given)]
            return (_first(*inner[0], given, wrong) if len(inner) == 1 else None) or eqn
        env.update(zip(eqn.outvars, results, strict=True))
    return None


def _has_nan(value: Any) -> bool:
    return _is_floating(value) and bool(np.isnan(np.asarray(value, np.float64)).any())


def _is_infinite(value: Any) -> bool:
    return _is_floating(value) and bool(np.isinf(np.asarray(value, np.float64)).any())


def _is_floating(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)
