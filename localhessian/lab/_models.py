"""Three small convolutional networks of equal size: plain, with batch normalization, with skip connections.

Chains of pure functions on NHWC images; blocks of one kind share one `apply`, so they share compiled programs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from localhessian._brief import by_value
from localhessian._types import Array, Key
from localhessian.network import Block, Chain


@by_value
class Model(NamedTuple):
    """A chain with its initial parameters."""

    chain: Chain
    params: dict[str, dict[str, Array]]


def convolution(params: dict[str, Array], z: Array, stride: int = 1) -> Array:
    """3 x 3, zero padding, bias."""
    layout = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(z, params["kernel"], (stride, stride), "SAME", dimension_numbers=layout)
    return out + params["bias"][None, None, None]


def batch_norm(params: dict[str, Array], z: Array, epsilon: float = 1e-5) -> Array:
    """Training mode: mean and variance of this batch, over samples and positions."""
    mean = jnp.mean(z, axis=(0, 1, 2), keepdims=True)
    variance = jnp.mean((z - mean) ** 2, axis=(0, 1, 2), keepdims=True)
    scale = params["gamma"][None, None, None] / jnp.sqrt(variance + epsilon)
    return (z - mean) * scale + params["beta"][None, None, None]


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


def _head(params, z):
    return jnp.mean(z, axis=(1, 2)) @ params["kernel"] + params["bias"][None]


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
    names = ["stem", *(f"conv{i}" for i in range(2, depth + 1))]
    blocks = [Block(name, stem if name == "stem" else body) for name in names] + [Block("head", _head)]
    keys = jax.random.split(key, depth + 1)
    params = {}
    for name, block_key in zip(names, keys[:-1], strict=True):
        below = channels if name == "stem" else width
        kernel = jax.random.normal(block_key, (3, 3, below, width)) * (2 / (9 * below)) ** 0.5
        params[name] = {"kernel": kernel, "bias": jnp.zeros(width)}
        if kind == "batchnorm":
            params[name] |= {"gamma": jnp.ones(width), "beta": jnp.zeros(width)}
    kernel = jax.random.normal(keys[-1], (width, classes)) / width**0.5
    params["head"] = {"kernel": kernel, "bias": jnp.zeros(classes)}
    return Model(Chain(blocks), params)
