"""Functions with marks, that several tests cut."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from networks import array, drawn

import localhessian as lh


def dense(seed, d_in, d_out):
    return {"kernel": drawn(seed, d_in, d_out) / d_in**0.5, "bias": 0.1 * drawn(seed + 100, d_out)}


def affine(p, z):
    return z @ p["kernel"] + jnp.broadcast_to(p["bias"], z.shape[:-1] + p["bias"].shape)


def mlp_params(widths=(3, 5, 5, 5, 2)):
    return {"layers": [dense(i, a, b) for i, (a, b) in enumerate(itertools.pairwise(widths))]}


def mlp(params, x):
    for i, layer in enumerate(params["layers"][:-1]):
        x = lh.mark(jnp.tanh(affine(layer, x)), f"hidden{i}")
    return affine(params["layers"][-1], x)


X = drawn(50, 6, 3)


def transformer_params(layers=3, d=4, vocabulary=7):
    def layer(i):
        return {name: drawn(10 * i + j, d, d) / 2 for j, name in enumerate(("query", "key", "value", "out", "mlp"))}

    return {"embed": drawn(0, vocabulary, d), "layers": [layer(i) for i in range(layers)]}


def attention_block(p, h, mask):
    scores = (h @ p["query"]) @ jnp.swapaxes(h @ p["key"], 1, 2)
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(h.dtype).min), axis=-1)
    h = h + weights @ (h @ p["value"]) @ p["out"]
    return h + jax.nn.gelu(h @ p["mlp"])


def transformer(params, tokens):
    """Padding (token 0) and causal mask, rotary-like table, tied embeddings."""
    t = tokens.shape[1]
    mask = (tokens != 0)[:, None, :] & jnp.broadcast_to(jnp.tril(jnp.ones((t, t), bool)), (tokens.shape[0], t, t))
    table = jnp.sin(jnp.arange(t, dtype=params["embed"].dtype))[None, :, None]
    h = lh.mark(params["embed"][tokens] * jnp.broadcast_to(table, (*tokens.shape, 1)), "embed")
    for i, p in enumerate(params["layers"]):
        h = lh.mark(attention_block(p, h, mask), f"layer{i}")
    return h @ params["embed"].T


TOKENS = array(np.random.default_rng(3).integers(0, 7, (5, 6)), int)
