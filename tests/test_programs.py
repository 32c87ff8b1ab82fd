"""How our programs are compiled: what they compute is right whatever this JAX's compiler makes of large sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import localhessian as lh
from localhessian._programs import _compile, compiled, sums_go_wrong
from localhessian.lab.zoo import token_loss

pytestmark = pytest.mark.once
POSITIONS, CLASSES = 1024, 64  # what is smaller is not fused


def _numbers(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _weights():
    weights = np.exp(_numbers(POSITIONS, CLASSES))
    return weights / weights.sum(-1, keepdims=True)


def _less_its_mean(w, z):
    return z - (w[None] * z).sum(-1, keepdims=True)


def test_forward_passes_of_layers_that_this_compiler_gets_wrong():
    # Rounding of a sum of 64 numbers of order 1; jaxlib 0.10's own answer is off by 0.9.
    chain = lh.Chain([lh.Block("a", _less_its_mean), lh.Block("b", lambda w, z: z.mean((1, 2))[:, None] * w[None])])
    x, w = _numbers(2, POSITIONS, CLASSES), _weights()
    loss = lambda z, y: jnp.sum((z - y) ** 2, axis=1)
    matching = lh.back_match(chain, {"a": w, "b": jnp.ones(1)}, x, jnp.zeros((2, 1)), loss)
    wanted = x.astype(np.float64) - (w.astype(np.float64) * x).sum(-1, keepdims=True)
    np.testing.assert_allclose(matching.activations[1], wanted, atol=1e-5)


@pytest.mark.parametrize("inside", [False, True])
def test_products_with_a_softmax_side_by_side(inside):
    # Alone each is right; side by side, as quadrature and Dense make them, jaxlib 0.10's second one is off by 140 %.
    chain = lh.Chain([lh.Block("head", lambda w, z: z @ w)])
    x, w, y = _numbers(16, 64, 8), _numbers(8, CLASSES), np.zeros((16, 64), np.int32)
    factor = lh.local_hessian(lh.back_match(chain, {"head": w}, x, y, token_loss), "head").factor.prepare()
    vectors = _numbers(2, factor.in_size)
    one_by_one = np.stack([factor.mv(v) for v in vectors])
    together = jax.vmap(factor.mv)
    together = jax.jit(together)(vectors) if inside else together(vectors)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-4, atol=1e-6 * np.abs(one_by_one).max())


def test_inside_of_other_programs_theirs_are_the_options():
    double = compiled(lambda x: 2 * x)
    assert jax.jit(lambda x: double(x) + 1)(3.0) == 7
    assert jax.grad(double)(3.0) == 2
    np.testing.assert_array_equal(jax.vmap(double)(jnp.arange(3.0)), [0, 2, 4])
    assert sums_go_wrong() in {True, False}
    power = compiled(lambda x, n: x**n, static_argnums=1)
    assert power(3.0, 2) == 9


def test_options_that_this_compiler_does_not_have_are_left_out(monkeypatch):
    x = _numbers(100)
    wanted = np.asarray(x) ** 2 + 1
    for options in (_compile._QUICKLY, {"xla_of_another_version": 1}):
        monkeypatch.setattr(_compile, "_QUICKLY", options)
        _compile._compiles_quickly.cache_clear()
        once = compiled(lambda x: x**2 + 1, once=True)
        np.testing.assert_allclose(once(x), wanted, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(lambda x, once=once: 2 * once(x))(x), 2 * wanted, rtol=1e-6)
    monkeypatch.undo()
    _compile._compiles_quickly.cache_clear()
