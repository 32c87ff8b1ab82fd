"""Convolutions as matrix products, for compiled loops, where XLA on the CPU runs them 100 times slower (jax#12868)."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from localhessian._programs import Equation, primitives, run_rewritten
from localhessian._types import Array
from localhessian.linalg.operators._cpu import contains_convolution, convolve_depthwise, is_depthwise

FEW = 8
"""Steps that are written out one after the other instead, with convolutions as they are."""

UNFOLDED = 2**22
"""Numbers of an image that is unfolded whole: 16 MiB."""


def repeat(step: Callable[[Any], Any], state: Any, count: int, few: int = FEW) -> Any:
    """`count` steps inside a compiled program, whose size grows with them up to `few` only."""
    if count <= few and jax.default_backend() == "cpu" and contains_convolution(jax.make_jaxpr(step)(state)):
        for _ in range(count):
            state = step(state)
        return state
    quick = in_loop(step)
    return jax.lax.fori_loop(0, count, lambda _, state: quick(state), state)


def in_loop(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function of one pytree, to stand in a compiled loop."""

    def run(state: Any) -> Any:
        if jax.default_backend() != "cpu":
            return function(state)
        return run_rewritten(function, _by_products, state)

    return run


def _by_products(eqn: Equation, turned: bool) -> Callable[[Array, Array], Array] | None:
    del turned
    if eqn.primitive is not primitives.conv_general_dilated_p:
        return None
    convolve = convolve_depthwise if is_depthwise(eqn) else _convolve
    return lambda image, window: convolve(eqn, image, window)


def _convolve(eqn: Any, image: Array, window: Array) -> Array:
    """A product with the unfolded image; of a large one, for each place of the window, or of the result if fewer."""
    p, shape, spec = eqn.params, eqn.outvars[0].aval.shape, eqn.params["dimension_numbers"].out_spec
    image, window = _grouped(p, image, window)  # (g, n, c, *space), (g, o, c, *window)
    places, sizes = [shape[i] for i in spec[2:]], window.shape[3:]
    by_place = math.prod(places) < math.prod(sizes)
    steps, apart = p["window_strides"], p["rhs_dilation"]
    seen, weights = list[Array](), list[Array]()
    for at in itertools.product(*map(range, places if by_place else sizes)):
        start = [i * step for i, step in zip(at, steps if by_place else apart, strict=True)]
        counts, strides = (sizes, apart) if by_place else (places, steps)
        stop = [first + (count - 1) * stride + 1 for first, count, stride in zip(start, counts, strides, strict=True)]
        seen.append(jax.lax.slice(image, (0, 0, 0, *start), (*image.shape[:3], *stop), (1, 1, 1, *strides)))
        weights.append(window if by_place else window[(..., *at)])
    if not by_place and sum(part.size for part in seen) <= UNFOLDED:
        # A sum of products would be computed anew in all that uses it.
        seen, weights = [jnp.concatenate(seen, axis=2)], [jnp.concatenate(weights, axis=2)]
    settings = {name: p[name] for name in ("precision", "preferred_element_type")}
    along = tuple(range(2, weights[0].ndim))
    numbers = ((along, along), ((0,), (0,)))
    parts = [jax.lax.dot_general(w, part, numbers, **settings) for w, part in zip(weights, seen, strict=True)]
    total = jnp.stack(parts, axis=-1) if by_place else sum(parts[1:], parts[0])  # (g, o, n, *places)
    channels = total.transpose(2, 0, 1, *range(3, total.ndim)).reshape(-1, shape[spec[1]], *places)
    return channels.transpose([spec.index(i) for i in range(len(spec))]).astype(eqn.outvars[0].aval.dtype)


def _grouped(p: dict[str, Any], image: Array, window: Array) -> tuple[Array, Array]:
    """With their groups in front, and the image's padding and holes written out."""
    numbers, groups, of_batch = p["dimension_numbers"], p["feature_group_count"], p["batch_group_count"]
    image, window = image.transpose(numbers.lhs_spec), window.transpose(numbers.rhs_spec)
    holes = [(low, high, step - 1) for (low, high), step in zip(p["padding"], p["lhs_dilation"], strict=True)]
    image = jax.lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), (0, 0, 0), *holes])
    if of_batch > 1:
        image = image.reshape(of_batch, -1, *image.shape[1:])
    else:
        image = jnp.moveaxis(image.reshape(len(image), groups, -1, *image.shape[2:]), 1, 0)
    return image, window.reshape(groups * of_batch, -1, *window.shape[1:])
