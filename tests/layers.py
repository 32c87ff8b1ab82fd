"""Layers that split, and their local Hessians against dense float64, for the tests of structure."""

import jax
import jax.numpy as jnp
import networks
import numpy as np

import localhessian as lh

ACTIVATIONS = {
    "none": lambda u: u,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "leaky": lambda u: jax.nn.leaky_relu(u, 0.1),
    "swish": jax.nn.swish,
}


def close(spectrum, matrix, tol):
    """Every eigenvalue with its multiplicity, against LAPACK in float64."""
    matrix = np.asarray(matrix, np.float64)
    exact = np.linalg.eigvalsh(matrix)
    found = np.repeat(np.asarray(spectrum.eigenvalues, np.float64), np.asarray(spectrum.multiplicities))
    assert len(found) == len(exact)
    np.testing.assert_allclose(found, exact, atol=10 * tol.eigenvalue * max(exact[-1], 1e-30))
    assert bool(spectrum.complete)
    assert int(np.max(spectrum.status)) == lh.Status.CONVERGED


def block_hessian(apply, params, z, wrt="params", samples=None):
    """H of a block that stands before a linear head."""
    out = jax.eval_shape(apply, params, z)
    flat = int(np.prod(out.shape[1:]))
    chain = lh.Chain([lh.Block("block", apply), lh.Block("head", lambda w, z: z.reshape(z.shape[0], -1) @ w)])
    y = jnp.zeros((z.shape[0], 2), out.dtype)
    head = networks.drawn(9, flat, 2) / flat
    matching = lh.back_match(chain, {"block": params, "head": head}, z, y, networks.squared_error)
    return lh.local_hessian(matching, "block", wrt, samples=samples)


def normed(params, z):
    return jax.nn.relu(networks.batch_norm(params["norm"], networks.linear(params, z)))


def normed_first(params, z):
    return networks.linear(params, jax.nn.relu(networks.batch_norm({"gamma": jnp.ones(5), "beta": jnp.ones(5)}, z)))


def pooled(params, z):
    u = jax.nn.relu(networks.conv(params, z))
    return jax.lax.reduce_window(u, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def heads(params, z):
    return jnp.tanh(jnp.einsum("nd,dhk->nhk", z, params["kernel"]) + params["bias"][None])


def per_head(params, z):
    return jnp.tanh(jnp.einsum("nhd,hdk->nhk", z.reshape(z.shape[0], 5, 1), params))


def turned(params, z):
    return jnp.tanh(jax.lax.rev((params @ z.T).T, (1,)))


def tokens_and_places(params, z):
    return params["table"][z] + params["places"][None]


KINDS = {
    "batch normalization": (normed, "norm"),
    "after a normalization without parameters": (normed_first, "dense"),
    "a skip around": (lambda p, z: z @ jnp.ones((5, 4), z.dtype) + jnp.tanh(networks.linear(p, z)), "dense"),
    "several heads": (heads, "heads"),
    "a kernel for each head": (per_head, "per head"),
    "a transposed kernel, reversed": (turned, "transposed"),
    "half of the outputs": (lambda p, z: jnp.tanh(networks.linear(p, z))[:, ::2], "dense"),
    "in a jit": (jax.jit(networks.tanh_dense), "dense"),
    "in a checkpoint": (jax.checkpoint(networks.tanh_dense), "dense"),
}


def parameters(kind):
    dense = {"kernel": networks.drawn(0, 5, 4), "bias": networks.drawn(1, 4)}
    return {
        "dense": dense,
        "norm": dense | {"norm": {"gamma": 1 + networks.drawn(2, 4) / 4, "beta": networks.drawn(3, 4)}},
        "heads": {"kernel": networks.drawn(0, 5, 2, 3), "bias": networks.drawn(1, 2, 3)},
        "per head": networks.drawn(0, 5, 1, 3),
        "transposed": networks.drawn(0, 4, 5),
    }[kind]
