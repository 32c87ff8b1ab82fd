"""How our programs are compiled: what they compute is right whatever this JAX's compiler makes of large sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import localhessian as lh
from localhessian._programs import _compile, compiled, compiler_options, sums_go_wrong
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
    matching = lh.back_match(chain, {"a": w, "b": np.ones(1, np.float32)}, x, np.zeros((2, 1), np.float32), loss)
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
    ours = {name: getattr(_compile, name) for name in ("_PLAIN_LOOPS", "_SELDOM_UNROLLED", "_UNOPTIMIZED")}
    for names in (ours, {key: {"xla_of_another_version": 1} for key in ours}):
        for name, options in names.items():
            monkeypatch.setattr(_compile, name, options)
        for once in (False, True):
            program = compiled(lambda x: x**2 + 1, once=once)
            np.testing.assert_allclose(program(x), wanted, rtol=1e-6)
            np.testing.assert_allclose(jax.jit(lambda x, run=program: 2 * run(x))(x), 2 * wanted, rtol=1e-6)
    assert "xla_of_another_version" not in compiler_options()


def test_who_wants_no_optimizations_gets_none():
    """Of two calls of a program, with and without them, each is compiled as was asked for."""
    before, asked = jax.config.read("jax_disable_most_optimizations"), {}
    program = compiled(lambda x: 3 * x)
    try:
        for unoptimized in (True, False, True):
            jax.config.update("jax_disable_most_optimizations", unoptimized)
            asked[unoptimized] = compiler_options().get("xla_backend_optimization_level")
            assert program(2.0) == 6
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    assert asked == {True: None, False: 1 if jax.default_backend() == "cpu" else None}


def _multiply(chain, params, x, y):
    """Everything that multiplies matrices, in one program."""
    loss = lambda z, y: 0.5 * ((z - y) ** 2).sum(1)
    matching = lh.back_match(chain, params, x, y, loss)
    operators = [lh.local_hessian(matching, "a", wrt) for wrt in ("params", "input")]
    methods = lh.Dense(), lh.Lanczos(max_matvecs=4), lh.GolubKahan(max_matvecs=4)
    return (
        [H.mv(jnp.ones(H.size)) for H in operators],
        [lh.spectrum(H, method).eigenvalues for H in operators for method in methods],
        lh.trace(operators[0], lh.Hutchinson(probes=2)).value,
        lh.spectral_density(operators[0], steps=2, probes=2).density.value,
        jax.grad(lh.back_matching_loss(matching, matching.chain.names[0]))(params[matching.chain.names[0]], x),
        lh.propagate(chain, params, x, y, loss, lh.GaussNewton())[0],
    )


@pytest.mark.parametrize("cut", [False, True])
def test_products_ask_for_full_precision_where_the_device_would_round_their_operands(monkeypatch, cut):
    # On GPUs and TPUs: operands of 10 or 7 bits make products that are not linear, and small eigenvalues of noise.
    def program():
        jax.clear_caches()
        params, x, y = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((5, 3)), jnp.zeros((5, 2))
        of_block = {"a": lambda w, z: jnp.tanh(z @ w), "b": lambda w, z: z @ w}
        if cut:
            model = lambda params, x: of_block["b"](params["b"], lh.mark(of_block["a"](params["a"], x), "a"))
            chain, params, _ = lh.chain_from_function(model, params, x)
        else:
            chain = lh.Chain([lh.Block(*block) for block in of_block.items()])
        return str(jax.make_jaxpr(lambda *args: _multiply(chain, *args))(params, x, y))

    def counts(text):
        return text.count("dot_general["), text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")

    monkeypatch.setattr(_compile, "_multiplies_coarsely", lambda: True)
    with jax.default_matmul_precision(None):
        products, precise = counts(program())
    assert products == precise > 100
    with jax.default_matmul_precision("tensorfloat32"):  # the user's own choice holds
        products, precise = counts(program())
    assert 0 < precise < products  # our own linear algebra has none
    jax.clear_caches()


def test_products_of_this_device_have_the_precision_of_their_type():
    w, x, v = _numbers(64, 32), _numbers(128, 64), _numbers(64, 32).ravel()
    chain = lh.Chain([lh.Block("a", lambda w, z: z @ w), lh.Block("b", lambda w, z: w * z)])
    loss = lambda z, y: 0.5 * ((z - y) ** 2).sum(1)
    with jax.default_matmul_precision(None):
        matching = lh.back_match(chain, {"a": w, "b": np.float32(1)}, x, np.zeros((128, 32), np.float32), loss)
        found = lh.local_hessian(matching, "a").mv(v)
    wide = x.astype(np.float64)
    exact = (wide.T @ (wide @ v.reshape(w.shape)) / 128).ravel()
    # Rounding of sums of 64 and of 128 numbers in float32; operands of 10 bits would make it 5e-4.
    np.testing.assert_allclose(found, exact, atol=2e-6 * np.abs(exact).max())
