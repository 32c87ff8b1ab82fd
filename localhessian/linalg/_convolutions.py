"""What XLA's CPU backend does badly with convolutions, and how to keep clear of it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives


def contains_convolution(jaxpr: Any) -> bool:
    """Whether a program convolves, at any depth (jax#12868: 100 times slower inside a loop on the CPU)."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return any(
        eqn.primitive is primitives.conv_general_dilated_p or any(map(contains_convolution, _programs(eqn)))
        for eqn in inner.eqns
    )


def run_quickly(function: Any, *args: Any) -> Any:
    """function(*args), to be traced; on the CPU with windows that fit into their images.

    A window larger than its image, as in the last layers of networks for small images, takes XLA's CPU backend 10 to 50
    times as long as the same image with its padding written out.
    """
    if jax.default_backend() != "cpu":
        return function(*args)
    closed, out = jax.make_jaxpr(lambda function, *args: function(*args), return_shape=True)(function, *args)
    leaves = core.jaxpr_as_fun(_quick(closed))(*jax.tree.leaves((function, *args)))
    return jax.tree.unflatten(jax.tree.structure(out), leaves)


def _quick(program: Any) -> Any:
    """The program with the padding of small images written out, at any depth."""
    if isinstance(program, core.ClosedJaxpr):
        return program.replace(jaxpr=_quick(program.jaxpr))
    return program.replace(eqns=[_quick_equation(eqn) for eqn in program.eqns])


def _quick_equation(eqn: core.JaxprEqn) -> core.JaxprEqn:
    if eqn.primitive is primitives.conv_general_dilated_p and any(_wide(eqn)):
        (call,) = jax.make_jaxpr(jax.jit(functools.partial(_padded, eqn)))(*(atom.aval for atom in eqn.invars)).eqns
        return eqn.replace(primitive=call.primitive, params=call.params)
    inside = {name: _quick(value) for name, value in eqn.params.items() if _is_program(value)}
    return eqn.replace(params={**eqn.params, **inside}) if inside else eqn


def _wide(eqn: Any) -> list[bool]:
    """For each dimension of the image, whether the window is larger."""
    numbers = eqn.params["dimension_numbers"]
    images, windows = (atom.aval.shape for atom in eqn.invars)
    sizes = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], strict=True)
    dilations = zip(eqn.params["lhs_dilation"], eqn.params["rhs_dilation"], strict=True)
    return [
        dilated == 1 and (windows[w] - 1) * apart + 1 > images[i]
        for (i, w), (dilated, apart) in zip(sizes, dilations, strict=True)
    ]


def _padded(eqn: core.JaxprEqn, image: Any, window: Any) -> Any:
    """The same convolution, of an image padded before."""
    places = eqn.params["dimension_numbers"].lhs_spec[2:]
    now, later = [(0, 0, 0)] * image.ndim, list(eqn.params["padding"])
    for i, (place, wide) in enumerate(zip(places, _wide(eqn), strict=True)):
        if wide:
            now[place], later[i] = (*later[i], 0), (0, 0)
    # The compiler would take the padding back into the convolution.
    image = jax.lax.optimization_barrier(jax.lax.pad(image, jnp.zeros((), image.dtype), now))
    return eqn.primitive.bind(image, window, **{**eqn.params, "padding": tuple(later)})


def _programs(eqn: core.JaxprEqn) -> list[Any]:
    leaves = jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program)
    return [leaf for leaf in leaves if _is_program(leaf)]


def _is_program(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
