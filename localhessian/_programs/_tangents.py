"""Many tangents of several arguments through a function at once, each argument's apart from the others'."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from localhessian._programs._evaluate import bind, evaluate
from localhessian._programs._inside import Equation, entered


@dataclasses.dataclass(frozen=True)
class _Tangents:
    """A linear function of some of the arguments: for each of them, one after the other, of all of its tangents."""

    of: tuple[int, ...]
    """Which arguments, in their order."""
    values: jax.Array
    """One row for each tangent of each."""

    def among(self, others: tuple[int, ...]) -> jax.Array:
        """With rows of zeros for the arguments that it does not depend on."""
        if self.of == others:
            return self.values
        parts = self.values.reshape(len(self.of), -1, *self.values.shape[1:])
        zeros = jnp.zeros_like(parts[0])
        return jnp.concatenate([parts[self.of.index(i)] if i in self.of else zeros for i in others])


def pushed(
    function: Callable[[Sequence[list[Any]]], tuple[list[Any], Any]],
    arguments: Sequence[list[Any]],
    tangents: Sequence[list[Any]],
) -> tuple[list[jax.Array], Any]:
    """J_i t of every argument i and each of its tangents t, of the shape (arguments, tangents, ...) of each result.

    What `jax.vmap` of a `jax.jvp` by each argument gives, in a program of half the size: what lies behind the place
    where the arguments meet is there once, and what lies before it multiplies no zeros.

    Args:
        function: Of lists of arrays, one for each argument. Gives a list of floating-point arrays, of which tangents
            are wanted, and anything else.
        arguments: Where.
        tangents: Of the shapes of the arguments, stacked on axis 0, as many of each.

    Returns:
        The images, and what else the function gives.
    """
    count = len(tangents[0][0])
    results, push, besides = jax.linearize(lambda *values: function(values), *arguments, has_aux=True)
    program = jax.make_jaxpr(push)(*arguments)
    flat = [_Tangents((i,), leaf) for i, leaves in enumerate(tangents) for leaf in leaves]

    def spread(image: Any, result: jax.Array) -> jax.Array:
        shape = (len(arguments), count, *result.shape)
        if isinstance(image, _Tangents):
            return image.among(tuple(range(len(arguments)))).reshape(shape)
        return jnp.zeros(shape, result.dtype)

    return list(map(spread, evaluate(program, flat, _rule), results)), besides


def _rule(eqn: Equation, values: list[Any]) -> list[Any]:
    """Linear in those operands that are tangents: a row of zeros gives a row of zeros."""
    inner = entered(eqn)
    if inner is not None:
        return evaluate(inner, values, _rule)
    held = [value for value in values if isinstance(value, _Tangents)]
    if not held:
        return bind(eqn, values)
    of = tuple(sorted({i for value in held for i in value.of}))
    rows = [value.among(of) if isinstance(value, _Tangents) else value for value in values]
    axes = [0 if isinstance(value, _Tangents) else None for value in values]
    return [_Tangents(of, result) for result in jax.vmap(lambda *row: bind(eqn, row), in_axes=axes)(*rows)]
