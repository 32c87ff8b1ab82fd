"""The last block: S of any loss, eager and traced, against dense float64; confident models sample by sample."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

import localhessian as lh
from localhessian.curvature._loss import curvature

cross_entropy = networks.cross_entropy
N, C = 6, 4
LABELS = jnp.arange(N) % C
ONE_HOT = jax.nn.one_hot(LABELS, C)
REAL = jnp.asarray(np.random.default_rng(3).standard_normal((N, C)), ONE_HOT.dtype)
BITS = (REAL > 0).astype(REAL.dtype)
WEIGHTS = jnp.linspace(0.2, 2, N).at[1].set(1e-6).at[2].set(0)


def focal(z, y):
    logs = jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1)[:, 0]
    return -((1 - jnp.exp(logs)) ** 2) * logs


def hurdle(z, y):
    positive = jax.nn.softplus(-z[:, 0]) + jnp.exp(z[:, 1]) - y * z[:, 1] + (z[:, 2] - z[:, 1]) ** 2
    return jnp.where(y == 0, jax.nn.softplus(z[:, 0]), positive)


def hard_examples(z, y):
    losses = cross_entropy(z, y)
    return losses * jax.lax.stop_gradient(losses / losses.sum())


def gaussian(z, y):
    return (0.5 * (z[:, :2] - y[:, :2]) ** 2 * jnp.exp(-z[:, 2:]) + 0.5 * z[:, 2:]).sum(1)


OF_OPTAX = {
    "cross-entropy": (cross_entropy, LABELS),
    "soft labels": (optax.softmax_cross_entropy, ONE_HOT),
    "safe": (optax.safe_softmax_cross_entropy, ONE_HOT),
    "smoothed": (lambda z, y: optax.softmax_cross_entropy(z, optax.smooth_labels(y, 0.1)), ONE_HOT),
    "squares": (lambda z, y: optax.l2_loss(z, y).sum(1), REAL),
    "huber": (lambda z, y: optax.huber_loss(z, y, delta=0.5).sum(1), REAL),
    "log cosh": (lambda z, y: optax.log_cosh(z, y).sum(1), REAL),
    "hinge": (lambda z, y: optax.hinge_loss(z, 2 * y - 1).sum(1), BITS),
    "logistic": (lambda z, y: optax.sigmoid_binary_cross_entropy(z, y).sum(1), BITS),
    "sigmoid focal": (lambda z, y: optax.sigmoid_focal_loss(z, y).sum(1), BITS),
    "kl": (lambda z, y: optax.kl_divergence(jax.nn.log_softmax(z), y), jax.nn.softmax(REAL)),
    "cosine": (lambda z, y: optax.cosine_distance(z, y, epsilon=1e-6), REAL),
    "poly": (optax.losses.poly_loss_cross_entropy, ONE_HOT),
    "ranking": (lambda z, y: optax.losses.ranking_softmax_loss(z, y, reduce_fn=None), BITS),
    "multiclass hinge": (optax.losses.multiclass_hinge_loss, LABELS),
    "sparsemax of classes": (optax.losses.multiclass_sparsemax_loss, LABELS),
    "perceptron": (lambda z, y: optax.losses.perceptron_loss(z, 2 * y - 1).sum(1), BITS),
    "sparsemax": (lambda z, y: optax.losses.sparsemax_loss(z, y).sum(1), BITS),
    "squared": (lambda z, y: optax.squared_error(z, y).sum(1), REAL),
    "generalized kl": (lambda z, y: optax.losses.generalized_kl_divergence(jax.nn.log_softmax(z), y), ONE_HOT),
}
OF_USERS = {
    "clipped": (lambda z, y: cross_entropy(jnp.clip(z, -1, 1), y), LABELS),
    "integer mask": (lambda z, y: jnp.where(y[1] > 0, cross_entropy(z, y[0]), 0), (LABELS, LABELS % 3)),
    "ignored": (lambda z, y: jnp.where(y < 0, 0, cross_entropy(z, jnp.maximum(y, 0))), LABELS.at[1].set(-1)),
    "by label": (lambda z, y: jnp.where(y == 0, cross_entropy(z, y), (z**4).sum(1)), LABELS),
    "weak by label": (lambda z, y: jnp.where(y == 0, cross_entropy(z, y), 1e-6 * (z**2).sum(1)), LABELS),
    "hurdle": (hurdle, LABELS),
    "focal": (focal, LABELS),
    "weights": (lambda z, y: cross_entropy(z, y[0]) * y[1], (LABELS, WEIGHTS)),
    "normalized": (lambda z, y: cross_entropy(z, y[0]) * y[1] / y[1].mean(), (LABELS, WEIGHTS)),
    "hard examples": (hard_examples, LABELS),
    "temperature": (lambda z, y: cross_entropy(3 * z, y), LABELS),
    "adjusted": (lambda z, y: cross_entropy(z + jnp.arange(4.0)[None], y), LABELS),
    "z-loss": (lambda z, y: cross_entropy(z, y) + 0.1 * jax.nn.logsumexp(z, -1) ** 2, LABELS),
    "and squares": (lambda z, y: cross_entropy(z, y) + (z**2 * jnp.array([1.0, 0, 0, 2])[None]).sum(1), LABELS),
    "poisson": (lambda z, y: (jnp.exp(z) - y * z).sum(1), BITS),
    "gaussian": (gaussian, REAL),
    "class weights": (lambda z, y: cross_entropy(z, y[0]) * y[1][y[0]], (LABELS, jnp.array([1.0, 10, 100, 1000]))),
    "a list": (lambda z, y: cross_entropy(z, jnp.stack(y)), [int(label) for label in LABELS]),
}
LOSSES = OF_OPTAX | OF_USERS
SOON = ("cross-entropy", "sigmoid focal", "integer mask", "hurdle", "a list")


def in_float64(tree):
    wide = lambda leaf: np.asarray(leaf, np.float64) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf
    return jax.tree.map(wide, tree)


def dense(loss, z, y):
    """S of each sample, in float64."""
    with jax.enable_x64(True):
        S = np.asarray(jax.jit(jax.hessian(lambda z, y: loss(z, y).sum()))(*in_float64((z, y))))
    return S[np.arange(len(z)), :, np.arange(len(z)), :]


def product(loss, index=None):
    """u -> S u of the samples meant, of rows of u."""

    def apply(z, y, u):
        return curvature(loss, z, y, index).hessian([u])[0]

    return apply


@pytest.mark.relaxed
@pytest.mark.parametrize("name", networks.waiting(LOSSES, SOON))
def test_the_traced_and_the_eager_product_are_the_float64_one(name, tol):
    loss, y = LOSSES[name]
    z = jnp.asarray(np.random.default_rng(5).standard_normal((N, C)), REAL.dtype)
    u = jnp.asarray(np.random.default_rng(6).standard_normal((N, C)), REAL.dtype)
    truth = np.einsum("nij,nj->ni", dense(loss, z, y), np.asarray(u, np.float64))
    index = np.array([4, 1, 2])
    everything = np.arange(N)
    for ours, rows in (
        (product(loss)(z, y, u), everything),
        (jax.jit(product(loss))(z, y, u), everything),
        (jax.jit(product(loss, jnp.asarray(index)))(z, y, u[index]), index),
    ):
        # Each sample to its own size; derivatives of float32 losses round by more than one product.
        apart = np.abs(np.asarray(ours, np.float64) - truth[rows]).max(1)
        assert np.all(apart <= 50 * tol.product * np.abs(truth[rows]).max(1)), name


@pytest.mark.relaxed
@pytest.mark.parametrize("name", ["clipped", "sigmoid focal", "weak by label"])
def test_local_hessians_of_the_last_block_under_jit(name, tol):
    """The same on the way through the block: H_W, and H_z of some samples."""
    loss, y = LOSSES[name]
    case = networks.mlp(widths=(3, C), n=N)
    z = case.chain.forward(case.params, case.x)[-1]
    S, A = dense(loss, z, y), np.concatenate([np.ones((N, 1)), np.asarray(case.x, np.float64)], axis=1)
    W = np.asarray(case.params["head"]["kernel"], np.float64)

    v, u = (np.random.default_rng(7).standard_normal(shape).astype(case.x.dtype) for shape in ((4, C), (2, 3)))

    def products(params, x, y):
        matching = lh.back_match(case.chain, params, x, y, loss)
        of_input = lh.local_hessian(matching, "head", "input", samples=[4, 1])
        return lh.local_hessian(matching, "head").mv(v.ravel()), of_input.mv(u)

    of_params = np.einsum("na,nij,nb,bj->ai", A, S, A, v).ravel() / N
    of_input = np.einsum("ai,nij,bj,nb->na", W, S[[4, 1]], W, u)
    for ours in (products(case.params, case.x, y), jax.jit(products)(case.params, case.x, y)):
        for one, truth in zip(ours, (of_params, of_input), strict=True):
            np.testing.assert_allclose(one, truth, rtol=50 * tol.product, atol=50 * tol.product * np.abs(truth).max())


def confident(logits, scale):
    """L with S = L L^T of a softmax of scaled logits in float64, a column for each pair of classes: nothing cancels."""
    logits = np.asarray(logits, np.float64) * scale[:, None]
    apart = logits - logits.max(1, keepdims=True)
    logs = apart - np.log(np.exp(apart).sum(1, keepdims=True))
    one, two = np.triu_indices(logits.shape[1], 1)
    edges = np.eye(logits.shape[1])[:, one] - np.eye(logits.shape[1])[:, two]
    return edges * (np.exp((logs[:, one] + logs[:, two]) / 2) * scale[:, None])[:, None, :]


@pytest.mark.parametrize("classes", [2, 4])
def test_samples_of_any_confidence_beside_each_other(classes, tol):
    """Temperatures of 1 to 10 and weights of 1 and 1e-6: S of each sample, to its own size, which is down to 1e-20."""
    z = 3 * REAL[:, :classes]
    scale, weights = (
        jnp.array([1.0, 3.0, 5.0, 5.0, 8.0, 10.0], z.dtype),
        jnp.array([1.0, 1e-6, 1, 1e-6, 1, 1], z.dtype),
    )
    loss = lambda z, y: y[2] * cross_entropy(z * y[1][:, None], y[0])
    L = confident(z, np.asarray(scale, np.float64))
    S = L @ L.swapaxes(1, 2) * np.asarray(weights, np.float64)[:, None, None]
    assert 1e-35 < np.abs(S).max((1, 2)).min() < 1e-10
    u = jnp.asarray(np.random.default_rng(6).standard_normal(z.shape), z.dtype)
    truth = np.einsum("nij,nj->ni", S, np.asarray(u, np.float64))
    y = (LABELS % classes, scale, weights)
    for ours in (product(loss)(z, y, u), jax.jit(product(loss))(z, y, u)):
        # exp(-x) in float32 has the relative error eps x, and x goes to 100.
        apart = np.abs(np.asarray(ours, np.float64) - truth) / np.abs(truth).max(1, keepdims=True)
        assert apart.max() <= 100 * tol.product
    matrices = np.asarray(jax.jit(lambda z, y: curvature(loss, z, y).root.data[1])(z, y))
    assert np.all(np.isfinite(matrices))


def test_kappa_of_a_confident_model(tol):
    """Logits times 30 (1e-6 of the batch in some directions): kappa_plus by the rank rule of the whole batch."""
    case = networks.mlp(widths=(4, 5, 3), last_gain=3.0)
    loss = lambda z, y: cross_entropy(8 * z, y)
    matching = lh.back_match(*case._replace(loss=loss))
    A = np.concatenate([np.ones((7, 1)), np.asarray(matching.activations[1], np.float64)], axis=1)
    R = np.einsum("na,nip->npai", A, confident(matching.activations[-1], np.full(7, 8.0)))
    sigma = np.linalg.svd(R.reshape(-1, 18) / np.sqrt(7), compute_uv=False)
    eps = float(jnp.finfo(case.x.dtype).eps)
    truth = (sigma[0] / sigma[sigma > 100 * eps * sigma[0]].min()) ** 2
    for method in (None, lh.Dense()):
        found = lh.condition_number(lh.spectrum(lh.local_hessian(matching, "head"), method))
        assert float(found.lower) <= truth * 1.001
        assert float(found.upper) >= truth * 0.999
        np.testing.assert_allclose(found.value, truth, rtol=1e-2)


def test_what_is_not_convex_is_symmetric_by_construction():
    """One sample of softmax, saturated, beside others of a loss that is not convex: no root, but a symmetric S."""
    loss = lambda z, y: jnp.where(y == 0, cross_entropy(30 * z, y), -(z**4).sum(1))
    found = curvature(loss, REAL, LABELS)
    assert found.root is None
    matrices = np.asarray(found.product.args[0])
    np.testing.assert_array_equal(matrices, matrices.swapaxes(1, 2))


def test_a_root_of_what_was_not_recognized_when_it_was_traced_is_nan():
    """Label 3 occurs in no made-up batch; where it occurs in the true one, the root is poisoned."""
    loss = lambda z, y: jnp.where(y == 3, (z**4).sum(1), cross_entropy(z, y))
    found = jax.jit(lambda z, y: curvature(loss, z, y).root.data[1])(REAL, LABELS)
    np.testing.assert_array_equal(np.isnan(found).all(1), LABELS == 3)
    np.testing.assert_array_equal(np.isnan(found).any(1), LABELS == 3)


@pytest.mark.parametrize("gain", [10.0, 100.0])
def test_the_full_part_of_a_confident_model_is_symmetric(gain, tol):
    """Of a linear head it is the Gauss-Newton part, to the size of each sample, by every method."""
    case = networks.mlp(widths=(4, 5, 3), last_gain=3.0)
    matching = lh.back_match(*case._replace(loss=lambda z, y: cross_entropy(gain * z, y)))
    for wrt, samples in (("params", None), ("input", [4, 2])):
        full, half = (
            lh.local_hessian(matching, "head", wrt, part, samples=samples) for part in ("full", "gauss_newton")
        )
        for method in (lh.Dense(), lh.Lanczos()):
            ours, truth = lh.spectrum(full, method).lambda_max, lh.spectrum(half, lh.Dense()).lambda_max
            np.testing.assert_allclose(ours, truth, rtol=100 * tol.eigenvalue)


@pytest.mark.once
@pytest.mark.relaxed
def test_rounding_is_not_called_asymmetry():
    """A full part in float32 of a block that computes in bfloat16 beside it: nothing for the user to make symmetric."""
    block = lambda w, z: {"narrow": (z @ w).astype("bfloat16"), "wide": z[:, :1]}
    loss = lambda z, y: (z["narrow"].astype("float32") ** 2).sum(1) + z["wide"][:, 0] ** 2 * y
    case = networks.mlp(widths=(4, 5))
    matching = lh.back_match(
        lh.Chain([lh.Block("b", block)]), {"b": case.params["head"]["kernel"]}, case.x, jnp.ones(7), loss
    )
    with pytest.raises(lh.SpectrumError, match=r"H_W of block `b` .full.: .* rounding of the model's own arithmetic"):
        lh.spectrum(lh.local_hessian(matching, "b", part="full"))
