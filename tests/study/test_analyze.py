"""The main job on small networks: rows, samples, interruption, messages, compilations."""

import re

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import localhessian as lh
from localhessian.study import MODELS, digits, digits_network, train
from localhessian.study._analyze import _indices

pytestmark = pytest.mark.once


def dense_kappa(case, block):
    """kappa_plus of H_W by float64 SVD of the Jacobian, assembled here."""
    matching = networks.matched(case)
    factor = np.asarray(lh.local_hessian(matching, block).factor.to_dense(), np.float64)
    sigma = np.linalg.svd(factor, compute_uv=False)
    sigma = sigma[sigma > 100 * jnp.finfo(jnp.zeros(()).dtype).eps * sigma[0]]
    return (sigma[0] / sigma[-1]) ** 2, len(sigma)


def test_a_row_for_every_block_and_side_against_dense_arithmetic():
    case = networks.mlp()
    report = lh.analyze(*case)
    assert [(row.block, row.wrt) for row in report.rows] == [
        (b, w) for b in case.chain.names for w in ("params", "input")
    ]
    for name in case.chain.names:
        kappa, rank = dense_kappa(networks.mlp, name)
        row = report[name, "params"]
        assert row.rank == rank
        np.testing.assert_allclose(row.kappa_plus, kappa, rtol=1e-3)
        assert row.kappa_lower <= kappa * (1 + 1e-6) <= row.kappa_upper * (1 + 1e-5)
        assert row.converged


def test_uncoupled_H_z_is_the_distribution_over_samples():
    case = networks.mlp()
    report = lh.analyze(*case, blocks=["layer1"], wrt=["input"], samples=[0, 3, 6])
    kappas = []
    for i in (0, 3, 6):
        spectrum = lh.spectrum(lh.local_hessian(networks.matched(networks.mlp), "layer1", "input", samples=i))
        kappas.append(float(lh.condition_number(spectrum).value))
    np.testing.assert_allclose(report.spectra["layer1", "input", "gauss_newton"].kappas, kappas, rtol=1e-4)
    np.testing.assert_allclose(report["layer1", "input"].kappa_plus, np.median(kappas), rtol=1e-4)
    assert report["layer1", "input"].samples == 3


def test_coupled_H_z_is_one_matrix_of_the_batch():
    row = lh.analyze(*networks.normalized(), blocks=["norm"], wrt=["input"])["norm", "input"]
    assert (row.coupled, row.size, row.samples) == (True, 30, 6)


def test_what_does_not_exist_is_said_and_not_crashed():
    report = lh.analyze(*networks.transformer(), blocks=["embed"])
    assert report["embed", "input"].note == "H_z does not exist: the block's input holds integers"
    assert np.isnan(report["embed", "input"].kappa_plus)
    report = lh.analyze(*networks.convolutional(), blocks=["flatten"], samples_per_block=1)
    assert report["flatten", "params"].note == "H_W does not exist: the block has no parameters"
    assert report["flatten", "input"].kappa_plus == pytest.approx(1)


def test_all_parts():
    report = lh.analyze(*networks.mlp(), blocks=["layer1"], wrt=["params"], part=("gauss_newton", "full", "residual"))
    assert [row.part for row in report.rows] == ["gauss_newton", "full", "residual"]
    assert report["layer1", "params", "residual"].status == "INDEFINITE"


def test_progress_is_told():
    seen = []
    lh.analyze(*networks.mlp(), blocks=["head"], progress=lambda *told: seen.append(told))
    assert seen == [
        (0, 2, "head / params / gauss_newton"),
        (1, 2, "head / input / gauss_newton"),
        (2, 2, "done"),
    ]


def test_an_interruption_keeps_what_is_done_and_resumes():
    case = networks.mlp()
    whole = lh.analyze(*case)
    calls = iter(range(10))

    def interrupt_once(done, total, what):
        if next(calls) == 3:
            raise KeyboardInterrupt

    partial = lh.analyze(*case, progress=interrupt_once)
    assert partial.meta["interrupted"]
    assert len(partial.rows) == 3
    resumed = lh.analyze(*case, resume=partial)
    assert resumed.rows == whole.rows
    assert not resumed.meta["interrupted"]
    changed = case._replace(x=case.x + 1)
    with pytest.raises(ValueError, match="`resume` is a report of another model, data or settings"):
        lh.analyze(*changed, resume=partial)


def test_messages():
    with pytest.raises(KeyError, match=re.escape("there is no block `haed` in this chain. Did you mean `head`?")):
        lh.analyze(*networks.mlp(), blocks=["haed"])
    with pytest.raises(ValueError, match="`samples_per_block` must be at least 1, got 0"):
        lh.analyze(*networks.mlp(), samples_per_block=0)


def test_new_numbers_of_the_same_shapes_do_not_recompile(count_compilations):
    case = networks.convolutional()
    lh.analyze(*case, samples_per_block=2)
    changed = case._replace(params=jax.tree.map(lambda leaf: leaf * 1.25, case.params), x=case.x + 0.5)
    with count_compilations() as seen:
        lh.analyze(*changed, samples_per_block=2)
    assert seen.names == []


def test_equal_blocks_compile_once(count_compilations):
    case = networks.mlp(networks.skip_dense, (5, 5, 5, 5, 5, 3))
    lh.analyze(*case, blocks=["layer1"])
    with count_compilations() as seen:
        lh.analyze(*case, blocks=["layer2", "layer3"])
    assert seen.names == []


@pytest.mark.parametrize("kind", MODELS)
def test_the_networks_of_the_demonstration(kind, tol):
    data = digits()
    chain, params = digits_network(kind, jax.random.key(0), depth=2, width=3)
    trained = train(chain, params, data, steps=30, learning_rate=0.1)
    assert trained.losses[-5:].mean() < trained.losses[:5].mean()
    x, y = data.train_x[:4], data.train_y[:4]
    check = lh.check_identities(chain, params, x, y, networks.cross_entropy)
    assert not check.failures
    coupled = lh.back_match(chain, params, x, y, networks.cross_entropy).coupled
    assert {bool(coupled[name]) for name in ("stem", "conv2")} == {kind == "batchnorm"}


def test_the_networks_are_of_equal_size():
    shapes = []
    for kind in MODELS:
        params = digits_network(kind, jax.random.key(0)).params
        shapes.append({name: (p["kernel"].shape, p["bias"].shape) for name, p in params.items()})
    assert shapes[0] == shapes[1] == shapes[2]
    with pytest.raises(ValueError, match="`kind` must be one of plain, batchnorm, skip, got 'dense'"):
        digits_network("dense", jax.random.key(0))


def test_digits_are_the_images_of_the_source():
    data = digits()
    assert data.train_x.shape == (1437, 8, 8, 1)
    assert data.test_x.shape == (360, 8, 8, 1)
    assert np.bincount(np.concatenate([data.train_y, data.test_y])).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    assert abs(float(data.train_x.mean())) < 1e-5
    assert float(data.train_x.std()) == pytest.approx(1, abs=1e-5)


def test_skip_bound_of_the_theory():
    """z + phi(z) with ||d phi/dz|| = eps < 1 has kappa(H_z) <= ((1 + eps) / (1 - eps))^2."""
    case = networks.skip()
    matching = networks.matched(networks.skip)
    for name in ("layer0", "layer1"):
        apply = matching.chain.blocks[matching.chain.index(name)]
        z = matching.activations[matching.chain.index(name)]
        jacobians = jax.vmap(jax.jacobian(lambda row, a=apply, p=case.params[name]: a(p, row[None])[0]))(z)
        norms = np.linalg.norm(np.asarray(jacobians) - np.eye(5), ord=2, axis=(1, 2))
        assert norms.max() < 1
        H = lh.local_hessian(matching, name, "input", samples=range(len(z)))
        kappa = lh.condition_number(lh.spectrum(H)).whole
        assert np.all(np.asarray(kappa) <= ((1 + norms) / (1 - norms)) ** 2 * (1 + 1e-5))


def test_what_samples_mean():
    """A number of any integer type is a count, a mask is a mask; what is neither is refused."""
    indices = lambda samples: _indices(samples, 6)
    assert indices(3) == indices(np.int64(3)) == indices(np.array(3)) == indices(jnp.array(3)) == (0, 2, 5)
    assert indices([True, False, True, False, False, False]) == indices((0, 2)) == (0, 2)
    for wrong in (0, True, 2.0, np.zeros((2, 2), int), [[0], [1, 2]], "a"):
        with pytest.raises(ValueError, match="`samples` must be"):
            indices(wrong)
