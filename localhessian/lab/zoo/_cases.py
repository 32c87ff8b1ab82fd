"""Whole cases to measure on: a cut network with data and loss, by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from localhessian._brief import by_value
from localhessian._types import Array, Loss
from localhessian.lab.zoo._families import gpt, mlp, resnet, vgg, vit
from localhessian.network import Cut, chain_from_nnx


@by_value
@dataclasses.dataclass(frozen=True)
class Case:
    """A network with a batch; `cut` holds its chain, parameters and context."""

    name: str
    model: nnx.Module
    cut: Cut
    x: Array
    y: Array
    loss: Loss


def _classes(model: Callable[[nnx.Rngs], nnx.Module], shape: tuple[int, ...]) -> Callable:
    def make(seed: int) -> tuple[nnx.Module, Any, Any, Loss]:
        random = np.random.default_rng(seed)
        x = jnp.asarray(random.normal(size=shape), jnp.zeros(()).dtype)
        y = jnp.asarray(random.integers(0, 10, shape[0]))
        return model(nnx.Rngs(seed)), x, y, optax.softmax_cross_entropy_with_integer_labels

    return make


def _tokens(model: Callable[[nnx.Rngs], nnx.Module], shape: tuple[int, int], vocabulary: int) -> Callable:
    def make(seed: int) -> tuple[nnx.Module, Any, Any, Loss]:
        random = np.random.default_rng(seed)
        x, y = (jnp.asarray(random.integers(0, vocabulary, shape)) for _ in range(2))
        return model(nnx.Rngs(seed)), x, y, token_loss

    return make


def token_loss(logits: Array, tokens: Array) -> Array:
    """Mean cross-entropy over the positions of each sequence, `(n,)`."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens), axis=1)


_CASES: dict[str, Callable] = {
    "mlp": _classes(lambda rngs: mlp((784, 512, 512, 512, 10), rngs=rngs), (256, 784)),
    "vgg13-bn/4": _classes(lambda rngs: vgg(13, width=0.25, rngs=rngs), (64, 32, 32, 3)),
    "vgg13-bn": _classes(lambda rngs: vgg(13, rngs=rngs), (128, 32, 32, 3)),
    "resnet20": _classes(lambda rngs: resnet(20, rngs=rngs), (128, 32, 32, 3)),
    "gpt": _tokens(lambda rngs: gpt(rngs=rngs), (16, 64), 64),
    "vit": _classes(lambda rngs: vit(rngs=rngs), (64, 32, 32, 3)),
}
CASES = tuple(_CASES)
"""The names that `case` takes."""


def case(name: str, *, seed: int = 0) -> Case:
    """A network of known sizes with random data, in training mode, cut into its layers.

    Args:
        name: `mlp`: 784-512-512-512-10 tanh, batch 256; `vgg13-bn/4`: a quarter of the channels, batch 64 of 32 x 32 x
            3, batch statistics; `vgg13-bn`: all channels, batch 128; `resnet20`: batch 128; `gpt`: 4 layers of 128
            features, 16 x 64 tokens; `vit`: 6 layers, batch 64.
        seed: Of parameters and data.

    Raises:
        ValueError: There is none of that name.

    Example:
        >>> from localhessian.lab import zoo
        >>> zoo.case("mlp").cut.chain.names
        ('layers.0', 'layers.1', 'layers.2', 'layers.3')
    """
    if name not in _CASES:
        raise ValueError(f"there is no case {name!r}: use {', '.join(CASES)}.")
    model, x, y, loss = _CASES[name](seed)
    model.train()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return Case(name, model, chain_from_nnx(model, x, at="layers.*"), x, y, loss)
