"""Deep dense networks without normalization, by their initialization; and what is drawn along depth."""

from typing import Any

import jax
import jax.numpy as jnp

from localhessian._types import Array
from localhessian.lab.zoo import INITIALIZERS, dense_network
from localhessian.network import Chain


def initialized(
    x: Array, width: int, depth: int, classes: int, activation: str, init: str, seed: int, gain: float = 1.0
) -> tuple[Chain, dict[str, Any]]:
    """`depth` hidden layers of equal width and a linear head; blocks of one activation share their programs.

    Args:
        x: A batch of inputs; they are flattened.
        width: Units of a hidden layer.
        depth: Hidden layers.
        classes: Logits.
        activation: As for `zoo.dense_network`.
        init: Of the kernels, of `zoo.INITIALIZERS`; biases are 0.
        seed: Of the kernels.
        gain: Times the kernels.
    """
    widths = [x[0].size, *[width] * depth, classes]
    chain, params = dense_network(widths, jax.random.key(0), activation=activation)
    keys = jax.random.split(jax.random.key(seed), len(params))
    dtype = jnp.result_type(float)
    return chain, {
        name: {**leaves, "kernel": gain * INITIALIZERS[init](key, leaves["kernel"].shape, dtype)}
        for key, (name, leaves) in zip(keys, params.items(), strict=True)
    }
