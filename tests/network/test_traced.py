"""What is known of a chain from shapes is traced once; blocks that compute the same share what is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import localhessian as lh
from localhessian.network._traced import trace

pytestmark = pytest.mark.once

N, D = 4, 3


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.result_type(float))


def squares(z, y):
    return 0.5 * ((z - y) ** 2).sum(1)


def chain_of(*functions):
    return lh.Chain([lh.Block(f"block{i}", function) for i, function in enumerate(functions)])


def weights(chain):
    return {name: random(i, D, D) for i, name in enumerate(chain.names)}


def kinds(*functions):
    chain = chain_of(*functions)
    return trace(chain, weights(chain), random(9, N, D), None).kinds


def own(apply):
    """A function of its own, as a loop over layers writes one for each."""
    return lambda w, z: apply(w, z)  # noqa: PLW0108


def test_equal_blocks_written_by_hand_share_programs_and_numbers_are_their_own(count_compilations, tol):
    layer = lambda w, z: jnp.tanh(z @ w) + z
    x, y = random(5, N, D), jnp.zeros((N, D))
    lh.back_match(few := chain_of(own(layer), own(layer)), weights(few), x, y, squares)
    with count_compilations() as seen:
        chain = chain_of(*(own(layer) for _ in range(6)))
        params = weights(chain)
        matching = lh.back_match(chain, params, x, y, squares)
        six = seen.count
    with count_compilations() as seen:
        lh.back_match(again := chain_of(*(own(layer) for _ in range(2))), weights(again), x, y, squares)
    assert six == seen.count <= 6  # as many for six blocks as for two
    loss = lambda params: squares(chain.forward(params, x)[-1], y).mean()
    for name, gradient in jax.jit(jax.grad(loss))(params).items():
        np.testing.assert_allclose(matching.gradients[name], gradient, rtol=0, atol=10 * tol.identity)
        operator = lh.local_hessian(matching, name)
        v = random(7, D * D)
        b = chain.index(name)
        outputs = lambda w, b=b: layer(w, matching.activations[b])
        _, moved = jax.jvp(outputs, (params[name],), (v.reshape(D, D),))
        expected = jax.vjp(outputs, params[name])[1](moved)[0].ravel() / N
        if b < len(chain) - 1:
            np.testing.assert_allclose(operator.mv(v), expected, rtol=0, atol=100 * tol.identity)


def scaled(number):
    return lambda w, z: z @ w * number


def with_rule(factor):
    @jax.custom_jvp
    def function(z):
        return 2 * z

    function.defjvp(lambda primals, tangents: (2 * primals[0], factor * tangents[0]))
    return lambda w, z: function(z @ w)


def on_the_host(factor):
    @jax.custom_jvp
    def function(z):
        times = lambda z: np.asarray(z) * np.asarray(factor, z.dtype)
        return jax.pure_callback(times, jax.ShapeDtypeStruct(z.shape, z.dtype), z)

    function.defjvp(lambda primals, tangents: (function(primals[0]), factor * tangents[0]))
    return lambda w, z: function(z @ w)


def test_only_what_computes_the_same_is_one_kind():
    table = np.ones((1, D), np.dtype(jnp.result_type(float)))
    other = table.copy()
    other[0, 1] = np.nextafter(other[0, 1], 2)
    assert kinds(scaled(0.1), scaled(0.1), scaled(0.2)) == (0, 0, 2)
    last_bit = float(np.nextafter(table.dtype.type(0.1), table.dtype.type(1)))
    assert kinds(scaled(0.1), scaled(last_bit)) == (0, 1)
    assert kinds(scaled(table), scaled(other), scaled(table.copy())) == (0, 1, 0)
    assert kinds(with_rule(2), with_rule(3), with_rule(2)) == (0, 1, 0)
    assert kinds(on_the_host(2), on_the_host(3)) == (0, 1)
    assert kinds(lambda w, z: z @ w, lambda w, z: z @ w.T) == (0, 1)
    assert kinds(lambda w, z: z @ w, lambda w, z, context: z @ w) == (0, 0)
    assert kinds(lambda w, z: (z @ w,), lambda w, z: (z[0] @ w,), lambda w, z: z[0] @ w) == (0, 1, 2)


@pytest.mark.once
def test_a_cut_model_tells_functions_of_the_host_apart():
    double, triple = on_the_host(2), on_the_host(3)

    def model(params, x):
        h = lh.mark(double(params["first"]["w"], x), "first")
        return lh.mark(triple(params["second"]["w"], h), "second") @ params["head"]["w"]

    x, params = random(5, N, D), {name: {"w": jnp.eye(D)} for name in ("first", "second", "head")}
    cut = lh.chain_from_function(model, params, x)
    for z, times in zip(cut.chain.forward(cut.params, x, cut.context), (1, 2, 6, 6), strict=True):
        np.testing.assert_array_equal(z, times * x)


def test_what_was_checked_for_some_shapes_is_not_checked_again_but_values_are():
    traced = []

    def layer(w, z):
        traced.append(z.shape)
        return jnp.tanh(z @ w)

    def loss(z, y):
        traced.append("loss")
        return squares(z, y)

    chain, x, y = chain_of(layer, layer), random(5, N, D), jnp.zeros((N, D))
    params = weights(chain)
    lh.back_match(chain, params, x, y, loss)
    traced.clear()
    lh.back_match(chain, jax.tree.map(lambda w: 2 * w, params), x, y, loss)
    assert traced == []
    for bad in (jnp.nan, jnp.inf):
        with pytest.raises(ValueError, match="the parameters of block `block1` are not finite"):
            lh.back_match(chain, params | {"block1": params["block1"].at[0, 0].set(bad)}, x, y, loss)
        with pytest.raises(ValueError, match="`x` is not finite"):
            lh.back_match(chain, params, x.at[0, 0].set(bad), y, loss)
    with pytest.raises(ValueError, match="the output of block `block0` is not finite"):
        lh.back_match(chain_of(lambda w, z: jnp.log(z @ w)), {"block0": -jnp.eye(D)}, x, y, loss)
    traced.clear()
    lh.back_match(chain, params, x[:2], y[:2], loss)
    assert (2, D) in traced
    assert "loss" in traced
    with pytest.raises(ValueError, match="block `block0` cannot be applied to an input of"):
        lh.back_match(chain, params, x[:, :2], y, loss)


@pytest.mark.once
@pytest.mark.relaxed
def test_other_settings_of_jax_are_checked_anew():
    chain = chain_of(lambda w, z: z @ w + jnp.arange(D))
    x, y = random(5, N, D), jnp.zeros((N, D))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        lh.back_match(chain, weights(chain), x, y, squares)
    with (
        jax.numpy_rank_promotion("raise"),
        pytest.raises(ValueError, match=r"block `block0` cannot be applied.*numpy_rank_promotion"),
    ):
        lh.back_match(chain, weights(chain), x, y, squares)


def test_randomness_of_the_host_is_found_in_the_block_that_has_it():
    steady, random_one = lambda w, z: z @ w, lambda w, z: z @ w * float(np.random.default_rng().uniform(1, 2))
    chain = chain_of(steady, random_one, steady)
    for _ in range(2):
        with pytest.raises(ValueError, match="block `block1` answers differently when called twice"):
            lh.back_match(chain, weights(chain), random(5, N, D), jnp.zeros((N, D)), squares)


def test_sharding_of_parameters_is_that_of_gradients(dtype):
    """Arrays that were put on a device by name give arrays there; no program for each leaf of any other."""
    chain, x, y = chain_of(lambda w, z: z @ w["kernel"] + w["bias"][None]), random(5, N, D), jnp.zeros((N, D))
    params = {"block0": {"kernel": random(0, D, D), "bias": random(1, D)}}
    plain = lh.back_match(chain, params, x, y, squares).gradients
    there = lh.back_match(chain, jax.device_put(params, jax.devices()[0]), x, y, squares).gradients
    for one, two in zip(jax.tree.leaves(plain), jax.tree.leaves(there), strict=True):
        np.testing.assert_array_equal(one, two)
        assert (one.committed, two.committed, one.dtype) == (False, True, dtype)
