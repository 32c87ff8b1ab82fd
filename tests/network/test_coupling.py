"""Whether a block mixes the samples of a batch: to the bit, whatever its products and sizes."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import localhessian as lh
from localhessian.network import ByInput, Place, jacobian
from localhessian.network._coupling import _patterns, couples_samples, loss_couples_samples


def coupled(apply, params, z):
    """As `back_match` finds it, of a block before a sum."""
    chain = lh.Chain(
        [lh.Block("block", apply), lh.Block("sum", lambda w, z: z.reshape(z.shape[0], -1).sum(1, keepdims=True))]
    )
    loss = lambda z, y: 0.5 * z[:, 0] ** 2
    return bool(lh.back_match(chain, {"block": params}, z, jnp.zeros(z.shape[0]), loss).coupled["block"])


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.result_type(float))


@pytest.mark.once
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(2, 35), tokens=st.integers(1, 6), d=st.integers(1, 9))
def test_attention_never_couples_and_a_leak_always_does(n, tokens, d):
    """Sizes that make products round in other ways for other rows; then sample 0 reads a little of the last one."""
    z = random(0, n, tokens, d)
    params = {name: random(i, d, d) for i, name in enumerate(("query", "key", "value"), start=1)}
    assert not coupled(networks.attention, params, z)
    leaking = lambda p, z: networks.attention(p, z).at[0].add(1e-4 * z[-1])
    assert coupled(leaking, params, z)


@pytest.mark.once
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


def tiny(dtype):
    """So small that nothing of it is left in a sum with z."""
    return jnp.asarray(1e-6 if dtype == jnp.float16 else 1e-12, dtype)


def rare(w, z):
    return jnp.where((jnp.arange(len(z)) == 4)[:, None], z + w * jnp.roll(z, 2, 0), z)


def layer_norm(w, z):
    return w * (z - z.mean(1, keepdims=True)) / jnp.sqrt(z.var(1, keepdims=True) + w)


def attention_over(z, seen):
    return jax.nn.softmax(jnp.where(seen, z @ z.T, -jnp.inf), axis=-1) @ z


ZOO = {
    True: (
        lambda w, z: layer_norm(w, z.T).T,
        lambda w, z: jnp.cumsum(w * z, 0),
        lambda w, z: attention_over(z, jnp.ones((len(z), len(z)), bool)),
        lambda w, z: w * z @ z.T,
        rare,
        lambda w, z: z[::-1],
        lambda w, z: z + tiny(z.dtype) * jnp.roll(z, 1, 0),
        lambda w, z: tiny(z.dtype) * jnp.cumsum(z, 0),
    ),
    False: (
        layer_norm,
        lambda w, z: jax.nn.softmax(w * z, axis=-1),
        lambda w, z: w * z / jax.lax.stop_gradient(jnp.abs(z).max()),
        lambda w, z: attention_over(z, jnp.eye(len(z), dtype=bool)),
    ),
}


@pytest.mark.once
@pytest.mark.relaxed
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_coupling_of_any_size_is_seen_in_every_dtype(dtype):
    """Batch norm, sums, attention and similarity over the batch, one sample in seven, a trillionth; no false alarm."""
    z, w = random(0, 7, 4).astype(dtype), jnp.asarray(0.5, dtype)
    for apart in ZOO[False]:
        assert not coupled_input(apart, w, z)
    for mixing in ZOO[True]:
        assert coupled_input(mixing, w, z)
    traced = jax.jit(lambda z: (coupled_input(rare, w, z), coupled_input(layer_norm, w, z)))(z)
    assert [bool(found) for found in traced] == [True, False]


def coupled_input(apply, w, z):
    """The probe alone, without a chain."""
    by_input = jacobian(ByInput(lh.Block("", apply)), Place(w, z, None)).prepare()
    return couples_samples(by_input, z, apply(w, z))


def test_a_loss_that_couples_only_to_second_order_is_seen():
    """l_i = z_i z_j at z = 0: no loss moves with another output, but the gradient does."""
    z, y = jnp.zeros((3, 1)), jnp.zeros(3)
    assert loss_couples_samples(lambda z, y: (z * jnp.roll(z, 1, 0))[:, 0] + y, z, y)
    assert not loss_couples_samples(lambda z, y: (z * jax.lax.stop_gradient(z.sum()))[:, 0] + y, z, y)


@pytest.mark.once
def test_a_loss_in_another_precision_than_its_outputs():
    """bfloat16 outputs, a float32 loss, strict promotion of types."""
    z, y = jnp.ones((3, 2), "bfloat16"), jnp.zeros(3, "float32")
    assert not loss_couples_samples(lambda z, y: (z.astype("float32") ** 2).sum(1) + y, z, y)
    assert loss_couples_samples(lambda z, y: (z.astype("float32") ** 2).sum() + y, z, y)


@pytest.mark.parametrize("n", [2, 3, 6, 7, 900])
def test_every_ordered_pair_of_samples_is_told_apart(n):
    moves = _patterns(n)
    assert len(moves) <= np.log2(n) + 3
    assert (moves[:, :, None] & ~moves[:, None, :]).any(0).sum() == n * (n - 1)
