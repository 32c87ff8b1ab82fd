"""Whether a block mixes the samples of a batch: to the bit, whatever its products and sizes."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import localhessian as lh


def coupled(apply, params, z):
    """As `back_match` finds it, of a block before a sum."""
    chain = lh.Chain(
        [lh.Block("block", apply), lh.Block("sum", lambda w, z: z.reshape(z.shape[0], -1).sum(1, keepdims=True))]
    )
    loss = lambda z, y: 0.5 * z[:, 0] ** 2
    return bool(lh.back_match(chain, {"block": params}, z, jnp.zeros(z.shape[0]), loss).coupled["block"])


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.zeros(()).dtype)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(2, 35), tokens=st.integers(1, 6), d=st.integers(1, 9))
def test_attention_never_couples_and_a_leak_always_does(n, tokens, d):
    """Sizes that make products round in other ways for other rows; then sample 0 reads a little of the last one."""
    z = random(0, n, tokens, d)
    params = {name: random(i, d, d) for i, name in enumerate(("query", "key", "value"), start=1)}
    assert not coupled(networks.attention, params, z)
    leaking = lambda p, z: networks.attention(p, z).at[0].add(1e-4 * z[-1])
    assert coupled(leaking, params, z)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_deep_transformer_does_not_couple(layers):
    def apply(params, z):
        for _ in range(layers):
            z = networks.attention(params, z)
            z = (z - z.mean(-1, keepdims=True)) / jnp.sqrt(z.var(-1, keepdims=True) + 1e-5)
            z = z + jax.nn.gelu(z @ params["up"]) @ params["down"]
        return z

    z = random(0, 4, 5, 6)
    names = ("query", "key", "value", "up", "down")
    shapes = ((6, 6), (6, 6), (6, 6), (6, 24), (24, 6))
    params = {name: random(i, *shape) / 3 for i, (name, shape) in enumerate(zip(names, shapes, strict=True))}
    assert not coupled(apply, params, z)


def test_batch_norm_couples_a_large_batch():
    params = {"gamma": jnp.ones(3), "beta": jnp.zeros(3)}
    assert coupled(networks.batch_norm, params, random(0, 700, 3))
    assert not coupled(lambda p, z: z * p["gamma"][None], params, random(0, 700, 3))
