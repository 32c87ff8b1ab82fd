"""What tests of models in flax nnx share: small data, a residual block, and a model as a function of its parameters."""

import jax
import jax.numpy as jnp
import networks
from flax import nnx

IMAGES = networks.drawn(0, 4, 6, 6, 2)
ROWS = networks.drawn(1, 5, 3)


class Residual(nnx.Module):
    def __init__(self, width, rngs):
        self.conv = nnx.Conv(width, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(nnx.relu(self.norm(self.conv(x))))


def in_precision_of_run(tree):
    """Flax makes float32 even where the run is in float64."""
    precise = jnp.result_type(float)
    return jax.tree.map(lambda a: a.astype(precise) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def made(cls):
    model = cls(nnx.Rngs(0))
    nnx.update(model, in_precision_of_run(nnx.state(model)))
    return model


def of_params(model):
    """The whole model as a function of its parameters, its other state as it is now."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    copies = jax.tree.map(jnp.asarray, rest)

    def run(params, x):
        return nnx.merge(graph, *jax.tree.map(lambda leaf: leaf, (params, copies)))(x)

    return run, jax.tree.map(jnp.asarray, params)
