"""Networks as chains of pure functions: dense ones, and three small convolutional ones of equal size.

Blocks of one kind share one `apply`, so they share compiled programs; the parameters are a function of the key, also
under `jax.vmap`.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from localhessian._brief import by_value
from localhessian._types import Array, Key
from localhessian.lab.zoo._layers import (
    INITIALIZERS,
    activation_named,
    affine,
    batch_norm,
    convolution,
    dtype,
    normal,
    pairs,
    pooled_affine,
)
from localhessian.network import Block, Chain


@by_value
class Model(NamedTuple):
    """A chain with its initial parameters."""

    chain: Chain
    params: dict[str, dict[str, Array]]


class _Layer(NamedTuple):
    """A block to be, with the shape of its kernel; its bias begins at 0."""

    name: str
    apply: Callable[[dict[str, Array], Array], Array]
    shape: tuple[int, ...]
    init: Callable[[Key, tuple[int, ...], Any], Array]


def _model(layers: Sequence[_Layer], keys: Iterable[Key]) -> Model:
    params = {layer.name: _begun(layer.init, layer.shape, key) for layer, key in zip(layers, keys, strict=True)}
    return Model(Chain([Block(layer.name, layer.apply) for layer in layers]), params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begun(init: Callable[[Key, tuple[int, ...], Any], Array], shape: tuple[int, ...], key: Key) -> dict[str, Array]:
    return {"kernel": init(key, shape, dtype()), "bias": jnp.zeros(shape[-1], dtype())}


def dense_network(widths: Sequence[int], key: Key, *, activation: str = "tanh") -> Model:
    """Dense blocks `dense1`, `dense2`, .. with an activation, and a linear `head`, without normalization and skips.

    Args:
        widths: Of the input, the hidden layers and the output.
        key: Of the initialization: normal of variance 1 / fan_in, 2 / fan_in before a ReLU; biases 0.
        activation: `linear`, `relu`, `sigmoid`, `tanh` or `gelu`.

    Returns:
        The chain and its parameters, in the default float dtype.

    Raises:
        ValueError: Fewer than two widths, or an unknown activation.
    """
    *hidden, last = pairs(widths)
    apply, init = _dense(activation), INITIALIZERS["he-gaussian" if activation == "relu" else "lecun-gaussian"]
    layers = [_Layer(f"dense{i}", apply, shape, init) for i, shape in enumerate(hidden, 1)]
    layers.append(_Layer("head", affine, last, INITIALIZERS["lecun-gaussian"]))
    return _model(layers, [jax.random.fold_in(key, i) for i in range(len(layers))])


@functools.cache
def _dense(activation: str) -> Callable[[dict[str, Array], Array], Array]:
    """One function for each activation, so that equal blocks share their programs."""
    function = activation_named(activation)
    return lambda params, z: function(affine(params, z))


def _stem(params, z):
    return jax.nn.relu(convolution(params, z, stride=2))


def _normalized_stem(params, z):
    return jax.nn.relu(batch_norm(params, convolution(params, z, stride=2)))


def _plain(params, z):
    return jax.nn.relu(convolution(params, z))


def _normalized(params, z):
    return jax.nn.relu(batch_norm(params, convolution(params, z)))


def _skip(params, z):
    return z + jax.nn.relu(convolution(params, z))


_KINDS: dict[str, tuple[Callable, Callable]] = {
    "plain": (_stem, _plain),
    "batchnorm": (_normalized_stem, _normalized),
    "skip": (_stem, _skip),
}
MODELS = tuple(_KINDS)
"""The names that `digits_network` takes."""


def digits_network(
    kind: str, key: Key, *, depth: int = 5, width: int = 12, classes: int = 10, channels: int = 1
) -> Model:
    """A network for 8 x 8 images: a stem of stride 2, `depth - 1` blocks of equal shape, and a pooled linear head.

    Each block is a 3 x 3 convolution and a ReLU; `batchnorm` normalizes between the two, `skip` adds the block's
    input to its output. The three have the same kernels and biases; `batchnorm` has gamma and beta besides.

    Args:
        kind: `plain`, `batchnorm` or `skip`.
        key: Of the initialization (He: variance 2 / fan_in; biases 0).
        depth: Convolutional blocks.
        width: Channels.
        classes: Logits.
        channels: Of the images.

    Returns:
        The chain and its parameters, in the default float dtype.

    Raises:
        ValueError: An unknown kind.
    """
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(MODELS)}, got {kind!r}.")
    stem, body = _KINDS[kind]
    he = INITIALIZERS["he-gaussian"]
    layers = [_Layer("stem", stem, (3, 3, channels, width), he)]
    layers += [_Layer(f"conv{i}", body, (3, 3, width, width), he) for i in range(2, depth + 1)]
    layers.append(_Layer("head", pooled_affine, (width, classes), _over_root))
    chain, params = _model(layers, jax.random.split(key, depth + 1))
    if kind == "batchnorm":
        norm = {"gamma": jnp.ones(width), "beta": jnp.zeros(width)}
        params |= {name: of_block | norm for name, of_block in params.items() if name != "head"}
    return Model(chain, params)


def _over_root(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """`lecun-gaussian` divided instead of multiplied."""
    return normal(key, shape, dtype) / shape[0] ** 0.5
