"""Where a number stops being finite: the first operation of a program that makes NaN or infinity of finite numbers."""

from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np

from localhessian._mesh import is_elsewhere
from localhessian._programs import Equation, Program, bind, entered, evaluate, primitives, run, unrolled, where
from localhessian._tree import is_floating

UNDEFINED = (
    "an undefined operation (0/0, the derivative of a norm or a square root at 0, a softmax over a row that is masked "
    "entirely, a variance of zero)"
)


def birth(function: Callable[..., Any], *arguments: Any) -> str:
    """In words: which operation of function(*arguments) is the first to leave the finite numbers, and on which line.

    Cost: the program's operations one after another; for the wording of an error only.
    """
    if is_elsewhere(arguments):  # no process has the numbers
        return f"{UNDEFINED}, or an overflow"
    closed = jax.make_jaxpr(function)(*arguments)
    leaves = jax.tree.leaves(arguments)
    outputs = run(closed, *leaves)
    is_nan = any(map(_has_nan, outputs))
    found = _first(closed, leaves, _has_nan if is_nan else _is_infinite)
    why = UNDEFINED if is_nan else "an overflow"
    if found is None:
        return why
    line = where(found, of_the_user=True)
    return f"{why}, first in `{found.primitive.name}`{line and f' at {line}'}"


class _Born(Exception):
    """An equation makes it."""


def _first(program: Program, values: list[Any], wrong: Callable[[Any], bool]) -> Equation | None:
    def rule(eqn: Equation, given: list[Any]) -> list[Any]:
        results = bind(eqn, given)
        if any(map(wrong, results)) and not any(map(wrong, given)):
            inner = entered(eqn)
            if inner is not None:
                evaluate(inner, given, rule)
            elif eqn.primitive is primitives.scan_p:
                unrolled(eqn, given, lambda body, values: evaluate(body, values, rule))
            raise _Born(eqn)
        return results

    try:
        evaluate(program, values, rule)
    except _Born as born:
        return cast(Equation, born.args[0])
    return None


def _has_nan(value: Any) -> bool:
    return is_floating(value) and bool(np.isnan(np.asarray(value, np.float64)).any())


def _is_infinite(value: Any) -> bool:
    return is_floating(value) and bool(np.isinf(np.asarray(value, np.float64)).any())
