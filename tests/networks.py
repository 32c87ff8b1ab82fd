"""Small networks of every kind of block, as chains with parameters and data, for the tests."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import localhessian as lh

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Case(NamedTuple):
    """Everything that `lh.back_match` takes."""

    chain: lh.Chain
    params: dict
    x: jax.Array
    y: jax.Array
    loss: object
    context: object = None


def squared_error(z, y):
    return 0.5 * jnp.sum((z - y) ** 2, axis=-1)


def doubled(rule):
    """2 z, whose derivative is a rule of its own."""

    @jax.custom_jvp
    def function(z):
        return 2 * z

    function.defjvp(lambda primals, tangents: (2 * primals[0], rule(tangents[0])))
    return function


def linear(params, z):
    return z @ params["kernel"] + params["bias"][None]


def tanh_dense(params, z):
    return jnp.tanh(linear(params, z))


def sigmoid_dense(params, z):
    return jax.nn.sigmoid(linear(params, z))


def relu_dense(params, z):
    return jax.nn.relu(linear(params, z))


def skip_dense(params, z):
    return z + 0.3 * jnp.tanh(linear(params, z))


def softmax_dense(params, z):
    return jax.nn.softmax(linear(params, z), axis=-1)


def conv(params, z):
    dimensions = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(z, params["kernel"], (1, 1), "SAME", dimension_numbers=dimensions)
    return jnp.tanh(out + params["bias"][None, None, None])


def batch_norm(params, z):
    axes = tuple(range(z.ndim - 1))
    mean = jnp.mean(z, axis=axes, keepdims=True)
    variance = jnp.mean((z - mean) ** 2, axis=axes, keepdims=True)
    ones = (None,) * (z.ndim - 1)
    return (z - mean) / jnp.sqrt(variance + 1e-5) * params["gamma"][ones] + params["beta"][ones]


def attention(params, z):
    queries, keys, values = (z @ params[name] for name in ("query", "key", "value"))
    scores = jnp.einsum("nqd,nkd->nqk", queries, keys) / math.sqrt(z.shape[-1])
    return z + jax.nn.softmax(scores, axis=-1) @ values


def flatten(params, z):
    del params
    return z.reshape(z.shape[0], -1)


def embed(params, tokens):
    return params["table"][tokens]


def masked(params, z, context):
    return jnp.tanh(linear(params, z)) * context["mask"][None]


def array(values, dtype=None):
    """On the device, of numbers in the default precision: cast by NumPy, for which no shape needs a program."""
    return jax.device_put(np.asarray(values, dtype or jnp.result_type(float)))


def normal(rng, *shape, scale=1.0):
    return array(scale * rng.standard_normal(shape))


def drawn(seed, *shape):
    return normal(np.random.default_rng(seed), *shape)


def labels(n, classes):
    return array(np.arange(n) % classes, int)


def dense_params(rng, fan_in, fan_out, gain=1.0):
    kernel = normal(rng, fan_in, fan_out, scale=gain / math.sqrt(fan_in))
    return {"kernel": kernel, "bias": normal(rng, fan_out, scale=0.1)}


def conv_params(rng, fan_in, fan_out):
    return {"kernel": normal(rng, 3, 3, fan_in, fan_out, scale=0.3), "bias": normal(rng, fan_out, scale=0.1)}


def mlp(apply=tanh_dense, widths=(4, 6, 5, 3), n=7, gain=1.0, last_gain=1.0, loss=cross_entropy, seed=0):
    rng = np.random.default_rng(seed)
    depth = len(widths) - 2
    blocks = [lh.Block(f"layer{i}", apply) for i in range(depth)] + [lh.Block("head", linear)]
    params = {f"layer{i}": dense_params(rng, *widths[i : i + 2], gain) for i in range(depth)}
    params["head"] = dense_params(rng, *widths[-2:], last_gain)
    x, y = normal(rng, n, widths[0]), labels(n, widths[-1])
    return Case(lh.Chain(blocks), params, x, y if loss is cross_entropy else array(np.eye(widths[-1])[y]), loss)


def skip():
    return mlp(skip_dense, (5, 5, 5, 3), loss=squared_error)


def softmax():
    return mlp(softmax_dense)


def vanishing_sigmoid():
    return mlp(sigmoid_dense, (8,) * 20 + (5,), n=13)


def vanishing_relu():
    return mlp(relu_dense, (16,) * 50 + (5,), n=13)


def tiny_logits():
    return mlp(relu_dense, (8, 8, 8, 5), last_gain=1e-4)


def normalized():
    rng = np.random.default_rng(2)
    blocks = [lh.Block("dense", linear), lh.Block("norm", batch_norm), lh.Block("head", linear)]
    norm = {"gamma": array([1.0, 0.5, 2.0, 1.5, 0.7]), "beta": array([0.1] * 5)}
    params = {"dense": dense_params(rng, 4, 5), "norm": norm, "head": dense_params(rng, 5, 3)}
    return Case(lh.Chain(blocks), params, normal(rng, 6, 4), labels(6, 3), cross_entropy)


def convolutional():
    rng = np.random.default_rng(3)
    names = (("conv", conv), ("norm", batch_norm), ("conv2", conv), ("flatten", flatten), ("head", linear))
    blocks = [lh.Block(name, apply) for name, apply in names]
    params = {
        "conv": conv_params(rng, 1, 2),
        "norm": {"gamma": array([1.0, 0.5]), "beta": array([0.0, 0.2])},
        "conv2": conv_params(rng, 2, 2),
        "head": dense_params(rng, 32, 3),
    }
    return Case(lh.Chain(blocks), params, normal(rng, 4, 4, 4, 1), labels(4, 3), cross_entropy)


def transformer(seed=0):
    rng = np.random.default_rng(seed)
    blocks = [lh.Block("embed", embed), lh.Block("attention", attention), lh.Block("head", linear_tokens)]
    params = {
        "embed": {"table": normal(rng, 7, 4)},
        "attention": {name: normal(rng, 4, 4, scale=0.5) for name in ("query", "key", "value")},
        "head": {"kernel": normal(rng, 4, 7)},
    }
    tokens = array(rng.integers(0, 7, (5, 3)), int)
    return Case(lh.Chain(blocks), params, tokens, tokens, token_cross_entropy)


def linear_tokens(params, z):
    return z @ params["kernel"]


def token_cross_entropy(logits, tokens):
    return cross_entropy(logits, tokens).mean(axis=1)


def with_context():
    case = mlp(widths=(4, 5, 3))
    chain = lh.Chain([lh.Block("layer0", masked), lh.Block("head", linear)])
    return case._replace(chain=chain, context={"mask": array([1.0, 0.0, 1.0, 1.0, 0.0])})


@functools.cache
def matched(make):
    """The back-matching of a case, computed once."""
    return lh.back_match(*make())


def waiting(cases, soon):
    """For `parametrize`: what is not among `soon` waits for `make full`."""
    return [pytest.param(case, marks=() if case in soon else pytest.mark.full) for case in cases]


SMALL = (mlp, skip, softmax, convolutional, transformer, with_context)
VANISHING = (vanishing_sigmoid, vanishing_relu, tiny_logits)
SOON = (convolutional, transformer, with_context, vanishing_relu)
"""Of those what the slow tests run first: every kind of block, and the deepest network."""
