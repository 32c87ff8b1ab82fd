"""Named initializations and activations, and the layers that networks share: functions of chains, modules of nnx."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from localhessian._types import Array, Key


def normal(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """`jax.random.normal`, with the same last bits in one program with what becomes of it: published runs hang on them.

    The compiler would multiply its own factor with that which follows.
    """
    return jax.lax.optimization_barrier(jax.random.normal(key, shape, dtype))


def _gaussian(gain: float) -> Callable[[Key, tuple[int, ...], Any], Array]:
    """Independent normal numbers of variance gain / fan_in; `he` and `lecun` cut them at two deviations."""
    numbers = lambda key, shape, dtype: normal(key, shape, dtype) * (gain / math.prod(shape[:-1])) ** 0.5
    return jax.jit(numbers, static_argnums=(1, 2))


INITIALIZERS: dict[str, Callable] = {
    "orthogonal": jax.nn.initializers.orthogonal(),
    "he": jax.nn.initializers.he_normal(),
    "lecun": jax.nn.initializers.lecun_normal(),
    "xavier": jax.nn.initializers.glorot_normal(),
    "he-gaussian": _gaussian(2.0),
    "lecun-gaussian": _gaussian(1.0),
}
"""Of kernels, by name; biases begin at 0."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda u: u,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
}
"""By name."""


def dtype() -> Any:
    """Of parameters: that of JAX's numbers, float64 where it is enabled."""
    return jnp.result_type(float)


def initializer(name: str, scale: float = 1.0) -> Callable:
    """A named initialization of kernels, times `scale`.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in INITIALIZERS:
        raise ValueError(f"`init` must be one of {', '.join(INITIALIZERS)}, got {name!r}.")
    kernel = INITIALIZERS[name]
    return kernel if scale == 1 else lambda *arguments: scale * kernel(*arguments)


def activation_named(name: str) -> Callable[[Array], Array]:
    """A named activation.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, got {name!r}.")
    return ACTIVATIONS[name]


def norm_named(name: str | None, features: int, rngs: nnx.Rngs) -> nnx.Module | None:
    """A named normalization over features; None for none.

    Raises:
        ValueError: There is none of that name.
    """
    if name is None:
        return None
    kinds: dict[str, Any] = {"batch": nnx.BatchNorm, "layer": nnx.LayerNorm}
    if name not in kinds:
        raise ValueError(f"`norm` must be one of {', '.join(kinds)} or None, got {name!r}.")
    module = kinds[name](features, param_dtype=dtype(), rngs=rngs)
    if name == "batch":  # its statistics are float32 whatever the parameters are
        module.mean, module.var = nnx.BatchStat(jnp.zeros(features)), nnx.BatchStat(jnp.ones(features))
    return module


def pairs(widths: Sequence[int]) -> list[tuple[int, int]]:
    """Of each layer the width below and its own.

    Raises:
        ValueError: There are fewer than two widths.
    """
    if len(widths) < 2:
        raise ValueError(f"`widths` must hold the input's and the output's at least, got {tuple(widths)}.")
    return list(itertools.pairwise(widths))


def affine(params: dict[str, Array], z: Array) -> Array:
    """Of flattened samples."""
    return z.reshape(z.shape[0], -1) @ params["kernel"] + params["bias"][None]


def pooled_affine(params: dict[str, Array], z: Array) -> Array:
    """Of the mean over the positions of NHWC images."""
    return affine(params, jnp.mean(z, axis=(1, 2)))


def convolution(params: dict[str, Array], z: Array, stride: int = 1) -> Array:
    """3 x 3, zero padding, bias; NHWC."""
    layout = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(z, params["kernel"], (stride, stride), "SAME", dimension_numbers=layout)
    return out + params["bias"][None, None, None]


def batch_norm(params: dict[str, Array], z: Array, epsilon: float = 1e-5) -> Array:
    """Training mode: mean and variance of this batch, over samples and positions."""
    mean = jnp.mean(z, axis=(0, 1, 2), keepdims=True)
    variance = jnp.mean((z - mean) ** 2, axis=(0, 1, 2), keepdims=True)
    scale = params["gamma"][None, None, None] / jnp.sqrt(variance + epsilon)
    return (z - mean) * scale + params["beta"][None, None, None]


class Layers(nnx.Module):
    """Layers one after the other; each is a block of the chain by default."""

    def __init__(self, layers: list[nnx.Module]):
        """Take the layers."""
        self.layers = nnx.List(layers)

    def __call__(self, x: Array) -> Array:
        """Through all layers."""
        for layer in self.layers:
            x = layer(x)
        return x


class Dense(nnx.Module):
    """Affine map, normalization, activation; samples are flattened first."""

    def __init__(
        self, inputs: int, units: int, activation: str, kernel_init: Callable, norm: str | None, rngs: nnx.Rngs
    ):
        """Make the parameters."""
        self.linear = nnx.Linear(inputs, units, kernel_init=kernel_init, param_dtype=dtype(), rngs=rngs)
        self.norm = norm_named(norm, units, rngs)
        self.activation = activation_named(activation)

    def __call__(self, x: Array) -> Array:
        """Rows to rows."""
        u = self.linear(x.reshape(x.shape[0], -1))
        return self.activation(u if self.norm is None else self.norm(u))


class Convolution(nnx.Module):
    """3 x 3 convolution (or another size), normalization, activation, and max-pooling if asked."""

    def __init__(
        self,
        channels: int,
        features: int,
        *,
        norm: str | None,
        kernel_init: Callable,
        rngs: nnx.Rngs,
        activation: str = "relu",
        stride: int = 1,
        size: int = 3,
        pool: bool = False,
    ):
        """Make the parameters; a normalization makes the convolution's bias idle, so there is none then."""
        self.conv = nnx.Conv(
            channels,
            features,
            (size, size),
            strides=(stride, stride),
            use_bias=norm is None,
            kernel_init=kernel_init,
            param_dtype=dtype(),
            rngs=rngs,
        )
        self.norm = norm_named(norm, features, rngs)
        self.activation = activation_named(activation)
        self.pool = pool

    def __call__(self, x: Array) -> Array:
        """NHWC to NHWC."""
        u = self.conv(x)
        u = self.activation(u if self.norm is None else self.norm(u))
        return nnx.max_pool(u, (2, 2), strides=(2, 2)) if self.pool else u


class PooledHead(nnx.Module):
    """Mean over the positions, then an affine map to logits."""

    def __init__(self, features: int, classes: int, kernel_init: Callable, rngs: nnx.Rngs):
        """Make the parameters."""
        self.linear = nnx.Linear(features, classes, kernel_init=kernel_init, param_dtype=dtype(), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """NHWC to logits."""
        return self.linear(jnp.mean(x, axis=(1, 2)))


class TransformerLayer(nnx.Module):
    """Pre-norm attention and a two-layer perceptron, each with a skip connection."""

    def __init__(self, dim: int, heads: int, *, causal: bool, kernel_init: Callable, rngs: nnx.Rngs):
        """Make the parameters.

        Raises:
            ValueError: `dim` is not a multiple of `heads`.
        """
        if dim % heads:
            raise ValueError(f"`dim` must be a multiple of `heads`, got {dim} and {heads}.")
        self.heads, self.causal = heads, causal
        self.norm1 = nnx.LayerNorm(dim, param_dtype=dtype(), rngs=rngs)
        self.qkv = nnx.Linear(dim, 3 * dim, use_bias=False, kernel_init=kernel_init, param_dtype=dtype(), rngs=rngs)
        self.out = nnx.Linear(dim, dim, use_bias=False, kernel_init=kernel_init, param_dtype=dtype(), rngs=rngs)
        self.norm2 = nnx.LayerNorm(dim, param_dtype=dtype(), rngs=rngs)
        self.up = nnx.Linear(dim, 4 * dim, kernel_init=kernel_init, param_dtype=dtype(), rngs=rngs)
        self.down = nnx.Linear(4 * dim, dim, kernel_init=kernel_init, param_dtype=dtype(), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """(n, tokens, dim) to the same."""
        x = x + self.out(self._attend(self.norm1(x)))
        return x + self.down(jax.nn.gelu(self.up(self.norm2(x))))

    def _attend(self, x: Array) -> Array:
        n, tokens, dim = x.shape
        q, k, v = jnp.split(self.qkv(x).reshape(n, tokens, 3 * self.heads, dim // self.heads), 3, axis=2)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / (dim // self.heads) ** 0.5
        if self.causal:
            seen = jnp.tril(jnp.ones((tokens, tokens), bool))
            scores = jnp.where(seen[None, None], scores, -1e9)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores, axis=-1), v)
        return mixed.reshape(n, tokens, dim)
