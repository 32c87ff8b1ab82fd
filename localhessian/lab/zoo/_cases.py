"""Whole cases to measure on: a cut network with data and loss, by name."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from localhessian._brief import by_value
from localhessian._types import Array, Loss
from localhessian.lab.zoo._families import gpt, mlp, resnet, vgg, vit
from localhessian.lab.zoo._layers import dtype
from localhessian.lab.zoo._network import built
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


def token_loss(logits: Array, tokens: Array) -> Array:
    """Mean cross-entropy over the positions of each sequence, `(n,)`."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens), axis=1)


_CASES: dict[str, tuple[Callable[..., nnx.Module], tuple[int, ...]]] = {
    "mlp": (functools.partial(mlp, (784, 512, 512, 512, 10)), (256, 784)),
    "vgg13-bn/4": (functools.partial(vgg, 13, width=0.25), (64, 32, 32, 3)),
    "vgg13-bn": (functools.partial(vgg, 13), (128, 32, 32, 3)),
    "resnet20": (functools.partial(resnet, 20), (128, 32, 32, 3)),
    "gpt": (gpt, (16, 64)),
    "vit": (vit, (64, 32, 32, 3)),
}
"""The builder, and the shape of a batch."""
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
    build, shape = _CASES[name]
    x, y, loss = _batch(shape, build is gpt, seed)
    model = built(lambda rngs: build(rngs=rngs), jax.random.key(seed))
    model.train()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return Case(name, model, chain_from_nnx(model, x, at="layers.*"), x, y, loss)


def _batch(shape: tuple[int, ...], of_tokens: bool, seed: int) -> tuple[Array, Array, Loss]:
    random = np.random.default_rng(seed)
    if of_tokens:
        x, y = (jnp.asarray(random.integers(0, 64, shape)) for _ in range(2))
        return x, y, token_loss
    x, y = jnp.asarray(random.normal(size=shape), dtype()), jnp.asarray(random.integers(0, 10, shape[0]))
    return x, y, optax.softmax_cross_entropy_with_integer_labels
