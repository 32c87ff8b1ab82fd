"""What stands behind the top of an H_W, against dense arithmetic in float64; and the words of notes."""

import jax.numpy as jnp
import networks
import numpy as np
import pytest

import localhessian as lh
from localhessian.analysis._insight import ALONE, BOTTOM, TOP
from localhessian.analysis._notes import not_convex

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((20, 5)) * [1, 2, 3, 1, 1] + [4, 0, 0, 0, 1]).astype(np.float32)
WEIGHTS = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in (("a", (5, 4)), ("b", (4, 3)))}


def as_default(array):
    return jnp.asarray(array, jnp.result_type(float))


def case(loss=networks.cross_entropy):
    """A layer with a bias and an activation whose gains differ by channel, and an affine head."""
    gains = jnp.array([[1.0, 0.1, 0.1, 0.1]])
    hidden = lh.Block("a", lambda p, z: jnp.tanh(0.05 * gains * (z @ p["kernel"] + p["bias"][None])))
    chain = lh.Chain([hidden, lh.Block("b", lambda p, z: z @ p)])
    params = {"a": {"kernel": as_default(WEIGHTS["a"]), "bias": jnp.zeros(4)}, "b": as_default(WEIGHTS["b"])}
    return chain, params, as_default(X), jnp.arange(20) % 3, loss


@pytest.fixture(scope="module")
def report():
    return lh.analyze(*case(), wrt="params")


def dense(block):
    """Eigenvalues, eigenvectors and the gradient, of the matrix."""
    matching = lh.back_match(*case())
    values, vectors = np.linalg.eigh(np.asarray(lh.local_hessian(matching, block).to_dense(), np.float64))
    gradient = matching.gradients[block]
    leaves = [gradient["bias"], gradient["kernel"]] if block == "a" else [gradient]  # as ravel_pytree orders them
    return values, vectors, np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)


@pytest.mark.parametrize("block", ["a", "b"])
def test_shares_of_the_gradient(report, block):
    values, vectors, gradient = dense(block)
    shares = (vectors.T @ gradient) ** 2 / (gradient @ gradient)
    row = report[block, "params"]
    np.testing.assert_allclose(row.gradient_top, shares[values >= TOP * values[-1]].sum(), atol=0.01)
    np.testing.assert_allclose(row.gradient_bottom, shares[values <= BOTTOM * values[-1]].sum(), atol=0.01)


def test_the_top_direction_is_told_by_the_mean_input_and_by_its_channel(report):
    values, vectors, _ = dense("a")
    top = vectors[:, -1]
    of_channels = np.concatenate([top[4:].reshape(5, 4), top[None, :4]])  # (input and bias, channel)
    mean = np.append(X.mean(0), 1)
    along = np.sum((mean @ of_channels) ** 2) / (mean @ mean)
    row = report["a", "params"]
    np.testing.assert_allclose(row.top_on_mean, along, atol=0.01)
    parts = np.sum(of_channels**2, axis=0)
    assert values[-2] < ALONE * values[-1]
    assert row.top_channel == parts.argmax() == 0
    np.testing.assert_allclose(row.top_channel_share, parts.max(), atol=0.01)


def test_centering_and_scaling_are_those_of_the_second_moments(report):
    def kappa(inputs):
        a = np.concatenate([inputs, np.ones((len(inputs), 1))], 1).astype(np.float64)
        return np.linalg.cond(a) ** 2

    x = X.astype(np.float64)
    row = report["a", "params"]
    np.testing.assert_allclose(row.kappa_inputs, kappa(x), rtol=1e-4)
    np.testing.assert_allclose(row.kappa_centered, kappa(x - x.mean(0)), rtol=1e-4)
    np.testing.assert_allclose(row.kappa_scaled, kappa(x / np.sqrt((x**2).mean(0))), rtol=1e-4)
    assert row.kappa_centered < row.kappa_inputs / 2


def test_of_an_affine_layer_it_is_the_condition_number_of_the_hessian_itself():
    chain = lh.Chain([lh.Block("a", lambda p, z: z @ p), lh.Block("b", lambda p, z: z @ p)])
    params = {name: as_default(weights) for name, weights in WEIGHTS.items()}
    row = lh.analyze(chain, params, as_default(X), jnp.zeros(20, int), networks.cross_entropy, wrt="params").rows[0]
    np.testing.assert_allclose(row.kappa_inputs, row.kappa_plus, rtol=1e-3)
    assert np.isnan(row.top_channel_share)  # every channel has the same eigenvalues


def test_nothing_is_said_without_structure_but_the_gradients_shares():
    attention = lh.analyze(*networks.transformer(), blocks="attention", wrt="params").rows[0]
    assert np.isnan([attention.kappa_inputs, attention.top_on_mean]).all()
    assert 0 <= attention.gradient_top <= 1


def test_a_loss_that_is_not_convex_is_told_with_its_samples():
    def loss(z, y):
        """Convex but for samples of the class 1."""
        return jnp.sum(jnp.where((y == 1)[:, None], jnp.cos(z), z**2), axis=-1)

    report = lh.analyze(*case(loss), blocks="b", part=("gauss_newton", "full"), samples=[0, 1, 2])
    matching = lh.back_match(*case(loss))
    which, outputs = not_convex(matching), np.asarray(matching.activations[-1], np.float64)
    concave = [i for i in range(20) if i % 3 == 1 and np.cos(outputs[i]).max() > 0]
    assert list(which) == concave
    row = report["b", "params"]
    assert row.status == "INDEFINITE"
    assert row.note.startswith(f"indefinite: the loss is not convex in the outputs here (samples {concave[0]}, ")
    assert "give the loss logits" in row.note
    of_samples = report["b", "input"]
    assert of_samples.note.startswith("1 of 3 samples (1): indefinite: the loss is not convex")
    assert report["b", "params", "full"].note.startswith("indefinite, as a full local Hessian may be")


def test_second_moments_are_the_same_from_either_gram_matrix(report):
    """With fewer places than inputs it is the smaller one, of the inputs."""
    few = slice(0, 4)
    chain, params, x, y, loss = case()
    row = lh.analyze(chain, params, x[few], y[few], loss, blocks="a", wrt="params").rows[0]
    sigma = np.linalg.svd(np.concatenate([X[few], np.ones((4, 1))], 1).astype(np.float64), compute_uv=False)
    centered = X[few].astype(np.float64) - X[few].mean(0, dtype=np.float64)
    of_centered = np.linalg.svd(np.concatenate([centered, np.ones((4, 1))], 1), compute_uv=False)
    np.testing.assert_allclose(row.kappa_inputs, (sigma[0] / sigma[3]) ** 2, rtol=1e-4)
    np.testing.assert_allclose(row.kappa_centered, (of_centered[0] / of_centered[3]) ** 2, rtol=1e-4)
