"""The whole way from parameters to condition numbers under jit and vmap, on pytrees, and lowered for accelerators."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import localhessian as lh

pytestmark = pytest.mark.once


def kappas(case, params, x):
    """kappa_plus of every H_W and of two samples' H_z, by the method that is chosen."""
    matching = lh.back_match(case.chain, params, x, case.y, case.loss, case.context)
    found = {}
    for name in case.chain.names:
        found[name] = (
            lh.condition_number(lh.spectrum(lh.local_hessian(matching, name))).value,
            lh.condition_number(lh.spectrum(lh.local_hessian(matching, name, "input", samples=(0, 2)))).value,
        )
    return found


def assert_near(ours, truth):
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(truth), strict=True):
        # The compiled way takes singular values in the model's precision, the host Gram matrices in float64.
        np.testing.assert_allclose(one, two, rtol=2e-3 if one.dtype == jnp.float32 else 1e-6)


def test_jit_equals_the_host_and_does_not_recompile(count_compilations):
    case = networks.mlp(widths=(4, 5, 3))
    compiled = jax.jit(lambda params, x: kappas(case, params, x))
    assert_near(compiled(case.params, case.x), kappas(case, case.params, case.x))
    changed = jax.tree.map(lambda leaf: 1.1 * leaf, case.params), case.x + 0.1
    with count_compilations() as seen:
        compiled(*changed)
    assert seen.names == []


def test_vmap_over_networks_equals_one_by_one():
    case = networks.mlp(widths=(4, 5, 3))
    gains = jnp.array([0.5, 1.0, 1.5])

    def at_gain(gain):
        return kappas(case, jax.tree.map(lambda leaf: gain * leaf, case.params), case.x)

    mapped = jax.jit(jax.vmap(at_gain))(gains)
    for i, gain in enumerate(gains):
        assert_near(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), at_gain(gain))


def test_samples_of_a_coupled_block_are_poisoned_where_coupling_is_known_only_at_run_time():
    case = networks.normalized()

    @jax.jit
    def product(params):
        matching = lh.back_match(case.chain, params, case.x, case.y, case.loss)
        return [lh.local_hessian(matching, name, "input", samples=1).to_dense() for name in ("dense", "norm")]

    uncoupled, coupled = product(case.params)
    assert np.all(np.isfinite(uncoupled))
    assert np.all(np.isnan(coupled))


def test_pytrees_of_activations_and_parameters_with_integers():
    """z carries a value past a block and an integer mask; a parameter tree holds a counter."""

    def first(params, z):
        h = jnp.tanh(z["x"] @ params["kernel"])
        return {"h": h, "skip": z["x"], "mask": z["mask"]}

    def second(params, z):
        kept = z["h"] * z["mask"].astype(z["h"].dtype)
        return kept @ params["kernel"] + z["skip"]

    chain = lh.Chain([lh.Block("first", first), lh.Block("second", second)])
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "first": {"kernel": jax.random.normal(keys[0], (4, 5)), "uses": jnp.array(3)},
        "second": {"kernel": jax.random.normal(keys[1], (5, 4))},
    }
    x = {"x": jax.random.normal(keys[2], (6, 4)), "mask": jnp.ones((6, 5), jnp.int32).at[0, 0].set(0)}
    loss, y = networks.squared_error, jnp.zeros((6, 4))
    assert not lh.check_identities(chain, params, x, y, loss).failures
    matching = lh.back_match(chain, params, x, y, loss)
    assert lh.local_hessian(matching, "first").size == 20
    assert lh.local_hessian(matching, "second", "input", samples=0).size == 9
    assert jax.tree.structure(matching.gradients) == jax.tree.structure(params)


def test_selection_of_parameters_is_a_principal_submatrix():
    matching = networks.matched(networks.mlp)
    whole = lh.local_hessian(matching, "layer1").to_dense()
    bias = lh.local_hessian(matching, "layer1", select=lambda path: "bias" in path).to_dense()
    np.testing.assert_allclose(bias, whole[:5, :5], rtol=1e-5)  # ravel_pytree puts `bias` before `kernel`


def test_a_block_with_the_batch_baked_in_gives_the_same_samples():
    """A reshape to the whole batch's shape refuses fewer samples, so the block runs on all and rows are taken."""
    case = networks.mlp()
    n = len(case.x)
    rigid = lh.Block("layer1", lambda params, z: networks.tanh_dense(params, z.reshape(n, 6)))
    chain = lh.Chain([case.chain.blocks[0], rigid, case.chain.blocks[2]])
    ours = lh.local_hessian(lh.back_match(*case._replace(chain=chain)), "layer1", "input", samples=[1, 4]).to_dense()
    truth = lh.local_hessian(networks.matched(networks.mlp), "layer1", "input", samples=[1, 4]).to_dense()
    np.testing.assert_allclose(ours, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["logistic", "weighted", "quartic"])
def test_factor_of_losses_that_nobody_announced(loss):
    """Logistic: diagonal S. Weighted cross-entropy: alpha varies. Quartic: no structure, factored numerically."""
    case = networks.mlp(loss=networks.squared_error)
    weights = jnp.linspace(0.5, 2, len(case.x))
    losses = {
        "logistic": (lambda z, y: jnp.sum(jnp.logaddexp(0, z) - y * z, axis=-1), case.y),
        "weighted": (
            lambda z, y: y[1] * (jax.nn.logsumexp(z, axis=-1) - jnp.sum(y[0] * z, axis=-1)),
            (case.y, weights),
        ),
        "quartic": (lambda z, y: jnp.sum((z - y) ** 2, axis=-1) ** 2 + jnp.sum(z**2, axis=-1), case.y),
    }
    function, y = losses[loss]
    matching = lh.back_match(case.chain, case.params, case.x, y, function)
    gauss_newton = lh.local_hessian(matching, "head")
    S = jax.jit(jax.hessian(lambda z: function(z, y).sum()))(matching.activations[-1])
    J = jax.jit(jax.jacobian(lambda p: networks.linear(p, matching.activations[2])))(case.params["head"])
    S = np.asarray(S, np.float64).reshape(21, 21)
    J = np.concatenate([np.asarray(leaf, np.float64).reshape(21, -1) for leaf in jax.tree.leaves(J)], axis=1)
    factor = np.asarray(gauss_newton.factor.to_dense(), np.float64)
    truth = J.T @ S @ J / 7
    np.testing.assert_allclose(factor.T @ factor, truth, atol=2e-6 * np.abs(truth).max())


def test_a_loss_that_is_not_convex_has_no_factor():
    case = networks.mlp(loss=networks.squared_error)
    matching = lh.back_match(case.chain, case.params, case.x, case.y, lambda z, y: -jnp.sum((z - y) ** 4, axis=-1))
    operator = lh.local_hessian(matching, "head")
    assert operator.factor is None
    assert lh.Status(int(lh.condition_number(lh.spectrum(operator)).status)) is lh.Status.INDEFINITE


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_whole_way_lowers_for_accelerators(platform):
    case = networks.convolutional()

    def program(params, x):
        matching = lh.back_match(case.chain, params, x, case.y, case.loss)
        H_W, H_z = lh.local_hessian(matching, "conv2"), lh.local_hessian(matching, "conv2", "input", samples=(0, 1))
        iterative = lh.spectrum(H_W, lh.GolubKahan(max_matvecs=3))
        return lh.condition_number(lh.spectrum(H_z)).value, iterative.eigenvalues, matching.gradients

    exported = jax.export.export(jax.jit(program), platforms=(platform,))(case.params, case.x)
    assert exported.platforms == (platform,)


def centered(params, z):
    out = networks.linear(params, z)
    return jnp.tanh(out - out.mean(0, keepdims=True))


@pytest.mark.parametrize(("apply", "new"), [(centered, 1), (networks.tanh_dense, 2)])
def test_back_matching_has_compiled_the_products(apply, new, count_compilations):
    """H_W and H_z multiply by the maps that back-matching multiplied by.

    Only W -> J W is new, and z -> J z where the program proved that there is no coupling to probe for.
    """
    case = networks.mlp(apply, widths=(4, 5, 5, 3))
    name = case.chain.names[1]
    matching = lh.back_match(case.chain, case.params, case.x, case.y, case.loss)
    vectors = {wrt: jnp.ones(lh.local_hessian(matching, name, wrt).size) for wrt in ("params", "input")}
    with count_compilations() as seen:
        for wrt, v in vectors.items():
            lh.local_hessian(matching, name, wrt).prepare().mv(v)
            lh.spectrum(lh.local_hessian(matching, name, wrt), lh.GolubKahan(max_matvecs=4, which="largest"))
    assert [name for name in seen.names if "call" in name] == ["jit(call)"] * new


def rounded_network(weights, activations):
    """Two layers with weights and activations of these dtypes, rounded from the same numbers."""

    def layer(params, z):
        return jnp.tanh(z @ params["kernel"] + params["bias"]).astype(activations)

    def loss(z, y):
        return 0.5 * ((z - y) ** 2).sum(1)

    random = np.random.default_rng(5)
    chain = lh.Chain([lh.Block("one", layer), lh.Block("two", layer)])
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), "float32")
    params = {name: {"kernel": draw(4, 4).astype(weights), "bias": draw(4).astype(weights)} for name in chain.names}
    return chain, params, draw(6, 4).astype(activations), draw(6, 4).astype(activations), loss


@pytest.mark.once
@pytest.mark.relaxed
@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
        pytest.param("float32", "bfloat16", marks=pytest.mark.full),
        ("float16", "float16"),
    ],
)
def test_models_of_half_and_mixed_precision(weights, activations):
    """Gradients in the dtype of their variables; spectra in float32, to the precision of the model."""
    eps = max(float(jnp.finfo(dtype).eps) for dtype in (weights, activations))
    matching, wide = lh.back_match(*rounded_network(weights, activations)), rounded_network("float32", "float32")
    truth = lh.back_match(*wide)
    for ours, exact in zip(jax.tree.leaves(matching.gradients), jax.tree.leaves(truth.gradients), strict=True):
        assert ours.dtype == weights
        np.testing.assert_allclose(np.float32(ours), exact, atol=10 * eps * float(jnp.max(jnp.abs(exact))))
    for name in matching.chain.names:
        for wrt in ("params", "input"):
            H = lh.local_hessian(matching, name, wrt)
            exact = lh.spectrum(lh.local_hessian(truth, name, wrt))
            for method, units in ((None, 3), (lh.Dense(), 3), (lh.GolubKahan(), 10), (lh.Lanczos(), 20)):
                found = lh.spectrum(H, method)
                assert found.eigenvalues.dtype == jnp.float32
                np.testing.assert_allclose(found.lambda_max, exact.lambda_max, rtol=units * eps)
