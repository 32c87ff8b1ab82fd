"""Whether a function has a derivative forward and one in reverse: proven from its program, or by tracing both."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from localhessian._programs import NO_DERIVATIVE, Equation, Program, alone, entered, is_custom, run
from localhessian._tree import floating, floating_leaves
from localhessian.network._apart import ELEMENTWISE

_MOVED = "broadcast_in_dim concatenate dynamic_slice gather pad reshape rev slice split squeeze transpose"
_SUMMED = "conv_general_dilated cumsum dot_general reduce_max reduce_min reduce_sum reduce_window_sum"
_KNOWN = {*ELEMENTWISE.split(), *_MOVED.split(), *_SUMMED.split()} - {"clamp", "nextafter"}
"""Without one that has no derivative, and one whose derivative is wrong where its bounds are single numbers."""
_POOLED = ("reduce_window_max", "reduce_window_min")


def have_derivatives(program: Program) -> bool:
    """Whether every equation has both, whatever it is differentiated by. True is proof; False says nothing.

    Cost: a walk, and what `trace_derivatives` takes of each function with a rule of its own.
    """
    return all(map(_has_derivatives, program.jaxpr.eqns))


def _has_derivatives(eqn: Equation) -> bool:
    if not any(map(_is_inexact, eqn.invars)):
        return True
    if is_custom(eqn):
        return _are_traced(alone(eqn))
    inner = entered(eqn)
    if inner is not None:
        return have_derivatives(inner)
    name = eqn.primitive.name
    return name in _KNOWN or (name in _POOLED and {*eqn.params["base_dilation"], *eqn.params["window_dilation"]} == {1})


def _is_inexact(atom: Any) -> bool:
    return bool(jnp.issubdtype(getattr(atom.aval, "dtype", bool), jnp.inexact))


def _are_traced(program: Program) -> bool:
    try:
        trace_derivatives(functools.partial(run, program), program.in_avals)
    except NO_DERIVATIVE:
        return False
    return True


def trace_derivatives(function: Callable[..., Any], arguments: Any, fixed: Any = ()) -> None:
    """Trace both derivatives of `function(*arguments, *fixed)` by the floating-point leaves of `arguments`.

    Where there is none it raises one of `NO_DERIVATIVE`.
    """

    def products(arguments: Any, fixed: Any) -> Any:
        inputs, rebuild = floating(arguments)
        values, jvp = jax.linearize(lambda leaves: floating_leaves(function(*rebuild(leaves), *fixed)), inputs)
        # A custom_vjp shows only when its linearization is transformed again.
        return jax.vmap(jvp)([leaf[None] for leaf in inputs]), jax.linear_transpose(jvp, inputs)(values)

    jax.eval_shape(products, arguments, fixed)
