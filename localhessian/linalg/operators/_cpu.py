"""What XLA's CPU backend does badly, and how to keep clear of it."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._programs import Equation, Rule, compiled, compiled_if_eager, equations, primitives, run_rewritten
from localhessian._types import Array

F = TypeVar("F", bound=Callable[..., Any])

LARGE = 1e6
"""Multiplications of a matrix product that are worth a transposition (heuristic)."""
TAPS = 64
"""Places of a window that are written out one by one, at most."""
SHIFTED = 1000
"""Multiplications with each number of an image up to which a sum of shifted images is less work (heuristic)."""
FEW, GROUP = 32, 256
"""Terms that one product with ones adds one after the other, if that is all and at most: in long sums of float32 digits
get lost."""


def contains_convolution(program: Any) -> bool:
    """Whether a program convolves, at any depth (jax#12868: 100 times slower inside a loop on the CPU)."""
    return any(eqn.primitive is primitives.conv_general_dilated_p for eqn in equations(program))


def run_quickly(function: Any, *args: Any) -> Any:
    """function(*args), to be traced: on the CPU with what is slow or wrong there done in another way.

    A window larger than its image, as in the last layers of networks for small images, takes XLA's CPU backend many
    times as long as the same image with its padding written out, and so does the transpose of max-pooling against a
    comparison with the place of the maximum. A^T B, of which gradients by weights are made, takes up to half as long
    again as with A^T written out. A convolution whose results see one channel each (depthwise, or of gray images) is
    a sum of shifted images. A sum over leading axes, as derivatives of biases and of normalization have, or over the
    middle ones of several images is a product with ones. benchmarks/cpu.py measures all five. Negative padding, as
    derivatives of layers have that pad by more than their window, makes jaxlib 0.10 compute wrong numbers: the image is
    cropped before.
    """
    return _run_by(_instead, function, *args)


def quickly(*, static_argnums: Sequence[int] = (), once: bool = False, depthwise: bool = True) -> Callable[[F], F]:
    """`compiled_if_eager`, of a function that runs as by `run_quickly`: for derivatives of a user's layers.

    Args:
        static_argnums: As `jax.jit` takes them.
        once: A program everywhere, as `compiled` has it.
        depthwise: Whether results that see one channel each become sums, which round in another order.
    """
    instead = _instead if depthwise else _but_depthwise
    program: Any = functools.partial(compiled, once=True) if once else compiled_if_eager

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def run(*args: Any) -> Any:
            moving = [arg for i, arg in enumerate(args) if i not in static_argnums]

            def filled(*values: Any) -> Any:
                rest = iter(values)
                return function(*(arg if i in static_argnums else next(rest) for i, arg in enumerate(args)))

            return _run_by(instead, Partial(filled), *moving)

        return cast(F, program(static_argnums=static_argnums)(run))

    return decorate


def _run_by(instead: Rule, function: Any, *args: Any) -> Any:
    if jax.default_backend() != "cpu":
        return function(*args)
    return run_rewritten(lambda function, *args: function(*args), instead, function, *args)


def _instead(eqn: Equation, turned: bool) -> Callable[..., Any] | None:
    """A function that does what a slow or wrong equation should; None for any other."""
    return functools.partial(convolve_depthwise, eqn) if is_depthwise(eqn) else _but_depthwise(eqn, turned)


def _but_depthwise(eqn: Equation, turned: bool) -> Callable[..., Any] | None:
    if eqn.primitive is primitives.conv_general_dilated_p and any(_padded_before(eqn)):
        return functools.partial(_convolve_padded, eqn)
    if eqn.primitive is primitives.dot_general_p and _is_upside_down(eqn):
        return functools.partial(_multiply_turned if turned else _multiply_upright, eqn)
    if eqn.primitive is primitives.select_and_scatter_add_p and _tiles(eqn):
        return functools.partial(_put_at_maxima, eqn.params["window_dimensions"])
    if _adds_rows(eqn):
        return functools.partial(_add_in_groups, tuple(map(int, eqn.params["axes"])))
    return None


def is_depthwise(eqn: Any) -> bool:
    """Whether it is a convolution by a small window each of whose results sees one channel of its image."""
    if eqn.primitive is not primitives.conv_general_dilated_p or eqn.params["batch_group_count"] > 1:
        return False
    out, depth, *window = (eqn.invars[1].aval.shape[i] for i in eqn.params["dimension_numbers"].rhs_spec)
    taps, each = math.prod(window), out // eqn.params["feature_group_count"]
    # Sums in half precision would lose digits that a convolution keeps.
    is_wide = eqn.outvars[0].aval.dtype.itemsize >= 4
    return bool(depth == 1 and taps <= TAPS and taps * each <= SHIFTED and is_wide)


def convolve_depthwise(eqn: Any, image: Array, window: Array) -> Array:
    """The sum of the shifted images, each times a number for each channel."""
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    # So that products of narrower numbers are exact.
    image, window = (operand.astype(eqn.outvars[0].aval.dtype) for operand in (image, window))
    feature, *space = numbers.lhs_spec[1:]
    channels, shape = image.shape[feature], [eqn.outvars[0].aval.shape[i] for i in numbers.out_spec[2:]]
    holes = [(0, 0, 0)] * image.ndim
    for i, (low, high), step in zip(space, p["padding"], p["lhs_dilation"], strict=True):
        holes[i] = (low, high, step - 1)
    image = jax.lax.pad(image, jnp.zeros((), image.dtype), holes)
    window = window.transpose([*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]])  # (*window, 1, out)
    taps, sizes = math.prod(window.shape[:-2]), window.shape[:-2]
    # Of the factors of a matrix product the compiler makes arrays; all else it computes anew for each result.
    weights = jnp.eye(taps, dtype=window.dtype) @ window.reshape(taps, -1)
    parts = []
    for row, tap in zip(weights, itertools.product(*map(range, sizes)), strict=True):
        seen: list[slice] = [slice(None)] * image.ndim
        for i, at, apart, count, step in zip(space, tap, p["rhs_dilation"], shape, p["window_strides"], strict=True):
            seen[i] = slice(at * apart, at * apart + (count - 1) * step + 1, step)
        weight = row.reshape(*[1] * feature, channels, -1, *[1] * (image.ndim - 1 - feature))
        parts.append(jnp.expand_dims(image[tuple(seen)], feature + 1) * weight)
    total = sum(parts[1:], parts[0])
    total = total.reshape(*total.shape[:feature], -1, *total.shape[feature + 2 :])
    back = np.argsort(numbers.out_spec)
    return cast(Array, total.transpose([numbers.lhs_spec[i] for i in back]))


def _padded_before(eqn: Any) -> list[bool]:
    """For each dimension of the image, whether the window is larger, or some of it is taken away (negative padding)."""
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    images, windows = (atom.aval.shape for atom in eqn.invars)
    sizes = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], strict=True)
    along = zip(sizes, p["lhs_dilation"], p["rhs_dilation"], p["padding"], strict=True)
    return [
        min(padding) < 0 or (dilated == 1 and (windows[w] - 1) * apart + 1 > images[i])
        for (i, w), dilated, apart, padding in along
    ]


def _convolve_padded(eqn: Equation, image: Array, window: Array) -> Array:
    places, padding, holes = (
        eqn.params["dimension_numbers"].lhs_spec[2:],
        list(eqn.params["padding"]),
        list(eqn.params["lhs_dilation"]),
    )
    now = [(0, 0, 0)] * image.ndim
    for i, (place, before) in enumerate(zip(places, _padded_before(eqn), strict=True)):
        if before:
            now[place] = (*padding[i], holes[i] - 1)
            padding[i], holes[i] = (0, 0), 1
    # The compiler would take the padding back into the convolution.
    image = jax.lax.optimization_barrier(jax.lax.pad(image, jnp.zeros((), image.dtype), now))
    params = {**eqn.params, "padding": tuple(padding), "lhs_dilation": tuple(holes)}
    return cast(Array, eqn.primitive.bind(image, window, **params))


def _is_upside_down(eqn: Any) -> bool:
    """Whether the first operand of a large matrix product is contracted along its leading dimensions only."""
    (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
    if batch or eqn.params.get("out_sharding") is not None:
        return False
    first, second = (atom.aval.shape for atom in eqn.invars)
    free = first[len(contracted) :]
    large = math.prod(free) * math.prod(second) >= LARGE
    return bool(free) and sorted(contracted) == list(range(len(contracted))) and large


def _multiply_upright(eqn: Any, first: Array, second: Array) -> Array:
    (along, other), _ = eqn.params["dimension_numbers"]
    return _after_transposition(eqn, first, along, second, other)


def _multiply_turned(eqn: Any, first: Array, second: Array) -> Array:
    """The transpose that follows is saved: with the operands exchanged it is undone."""
    (along, other), _ = eqn.params["dimension_numbers"]
    product = _after_transposition(eqn, second, other, first, along)
    rows = second.ndim - len(other)
    return jax.lax.transpose(product, (*range(rows, product.ndim), *range(rows)))


def _after_transposition(
    eqn: Any, first: Array, along: tuple[Any, ...], second: Array, other: tuple[Any, ...]
) -> Array:
    """The product of two arrays, contracted `along` and `other`, after a transposition of the first."""
    free = tuple(i for i in range(first.ndim) if i not in along)
    # The compiler would take the transposition back into the product.
    upright = jax.lax.optimization_barrier(jax.lax.transpose(first, (*free, *along)))
    numbers = ((tuple(range(len(free), first.ndim)), other), ((), ()))
    return cast(Array, eqn.primitive.bind(upright, second, **{**eqn.params, "dimension_numbers": numbers}))


def _adds_rows(eqn: Any) -> bool:
    """Whether it sums over leading axes, or the middle ones of several images, over these alone, in groups.

    Not of one image: there such sums are part of what is computed before, and products would be compiled for longer. Of
    several, below a `vmap`, they are loops of their own that read each column by itself.
    """
    if eqn.primitive is not primitives.reduce_sum_p or eqn.params.get("out_sharding") is not None:
        return False
    axes, array = sorted(eqn.params["axes"]), eqn.invars[0].aval
    leads = 0 < len(axes) < array.ndim <= 3 and axes == list(range(len(axes)))
    # Sums of half precision are rounded once; products may round each of their terms.
    is_wide = np.issubdtype(array.dtype, np.floating) and array.dtype.itemsize >= 4
    fits = (leads or (axes == [1, 2, 3] and array.ndim == 5)) and is_wide and array.size
    return bool(fits and max(_groups(math.prod(array.shape[i] for i in axes))) <= GROUP)


def _groups(terms: int) -> list[int]:
    """Factors of the number of terms, as few as keep below `GROUP` and as equal as it has them."""
    count, found = 1 if terms <= FEW else 2 if terms <= GROUP**2 else 3, []
    while count > 1:
        goal = terms ** (1 / count)
        divisors = [size for size in range(1, GROUP + 1) if terms % size == 0]
        found.append(min(divisors, key=lambda size: abs(math.log(size / goal))))
        terms, count = terms // found[-1], count - 1
    return [*found, terms]


def _add_in_groups(axes: tuple[int, ...], array: Array) -> Array:
    """The sum over such axes: of distant terms by a product with ones, then of what that gives."""
    kept, after = array.shape[: min(axes)], array.shape[max(axes) + 1 :]
    total = array.reshape(*kept, 1, -1)
    for size in _groups(math.prod(array.shape[i] for i in axes)):
        total = jnp.ones((*kept, 1, size), array.dtype) @ total.reshape(*kept, size, -1)
    return total.reshape(*kept, *after)


def _tiles(eqn: Any) -> bool:
    """Whether the windows of the transpose of a max-pooling cover the image without overlap."""
    window, (_, image) = eqn.params["window_dimensions"], (atom.aval.shape for atom in eqn.invars)
    return (
        eqn.params["select_prim"] is primitives.ge_p
        and window == eqn.params["window_strides"]
        and not np.any(eqn.params["padding"])
        and not any(size % width for size, width in zip(image, window, strict=True))
    )


def _put_at_maxima(window: tuple[int, ...], source: Array, image: Array) -> Array:
    """The source at the first maximum of each window, zero elsewhere."""
    split = [part for size, width in zip(source.shape, window, strict=True) for part in (size, width)]
    order = [*range(0, 2 * image.ndim, 2), *range(1, 2 * image.ndim, 2)]
    tiles = image.reshape(split).transpose(order).reshape(*source.shape, math.prod(window))
    first = jax.lax.argmax(tiles, image.ndim, np.dtype("int32"))[..., None]
    here = jax.lax.broadcasted_iota(np.int32, tiles.shape, image.ndim)
    put = jnp.where(first == here, source[..., None], 0)
    return put.reshape(*source.shape, *window).transpose(np.argsort(order).tolist()).reshape(image.shape)
