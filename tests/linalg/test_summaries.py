"""Figures of a spectrum, traces and audits against closed forms and dense float64."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax.tree_util import Partial

import localhessian as lh
from localhessian.linalg import gram, matrix_map


def times(matrix, v):
    return jnp.matmul(matrix, v, precision="highest")


def symmetric(eigenvalues, seed=0):
    """A symmetric operator with these eigenvalues, no factor, and its float64 matrix."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    matrix = basis * np.asarray(eigenvalues, float) @ basis.T
    matrix = (matrix + matrix.T) / 2
    return lh.symmetric_operator(Partial(times, jnp.asarray(matrix)), len(eigenvalues)), matrix


def test_summary_is_the_closed_form(tol):
    eigenvalues = np.array([-2.0, -1.0, 0.0, 1.0, 4.0])
    summary = lh.summarize(lh.spectrum(symmetric(eigenvalues)[0]))
    expected = [2.0, 0.4, 22 / 16, 0.5, 0.4]
    found = [getattr(summary, field.name) for field in dataclasses.fields(summary)]
    np.testing.assert_allclose(found, expected, rtol=50 * tol.eigenvalue)


def test_summary_of_a_factor_of_vanishing_size_does_not_underflow(tol):
    factor = jnp.diag(jnp.array([1.0, 2.0, 3.0])) * 1e-15
    summary = lh.summarize(lh.spectrum(matrix_map(factor)))
    np.testing.assert_allclose(summary.stable_rank, (1 + 16 + 81) / 81, rtol=10 * tol.eigenvalue)
    np.testing.assert_allclose(summary.effective_rank, 14 / 9, rtol=10 * tol.eigenvalue)
    assert float(summary.negative_fraction) == 0


def test_summary_under_transformations_and_of_batches(tol):
    factors = networks.drawn(0, 3, 7, 4)
    batched = lh.summarize(lh.spectrum(gram(matrix_map(factors))))
    mapped = jax.jit(jax.vmap(lambda R: lh.summarize(lh.spectrum(gram(matrix_map(R))))))(factors)
    wide = np.asarray(factors, np.float64)
    np.testing.assert_allclose(batched.trace, np.sum(wide**2, axis=(1, 2)), rtol=10 * tol.eigenvalue)
    for field in dataclasses.fields(batched):
        np.testing.assert_allclose(getattr(mapped, field.name), getattr(batched, field.name), rtol=100 * tol.eigenvalue)


def test_summary_of_what_is_not_known_is_nan():
    incomplete = lh.summarize(lh.spectrum(symmetric(np.linspace(1, 2, 60))[0], lh.Lanczos(max_matvecs=20)))
    assert all(np.isnan(getattr(incomplete, field.name)) for field in dataclasses.fields(incomplete))
    zero = lh.summarize(lh.spectrum(symmetric(np.zeros(3))[0]))
    assert float(zero.trace) == 0
    assert np.isnan(zero.stable_rank)


@pytest.mark.parametrize("kind", ["symmetric", "gram", "linear map"])
def test_trace_is_within_its_error_bar(kind):
    eigenvalues = np.geomspace(1e-2, 1, 80)
    operator, matrix = symmetric(eigenvalues)
    root = matrix_map(jnp.asarray(np.linalg.cholesky(matrix).T))
    operator = {"symmetric": operator, "gram": gram(root), "linear map": root}[kind]
    found = lh.trace(operator, lh.Hutchinson(probes=60), key=jax.random.key(1))
    assert found.probes == 60
    assert not found.exact
    assert 0 < float(found.standard_error) < 0.1 * eigenvalues.sum()
    assert abs(float(found.value) - eigenvalues.sum()) < 4 * float(found.standard_error)


def test_error_bar_of_the_trace_is_the_spread_of_estimates():
    """Over many keys the estimates scatter as the error bars say, and their mean is the trace."""
    operator, matrix = symmetric(np.geomspace(1e-2, 1, 40))
    estimate = lambda key: lh.trace(operator, lh.Hutchinson(probes=20), key=key)
    found = jax.vmap(estimate)(jax.random.split(jax.random.key(0), 400))
    spread = np.std(found.value)
    off_diagonal = matrix - np.diag(np.diag(matrix))
    np.testing.assert_allclose(spread, np.sqrt(2 * np.sum(off_diagonal**2) / 20), rtol=0.15)
    np.testing.assert_allclose(np.sqrt(np.mean(np.asarray(found.standard_error) ** 2)), spread, rtol=0.15)
    np.testing.assert_allclose(np.mean(found.value), np.trace(matrix), atol=4 * spread / 20)


def test_trace_of_small_and_batched_operators_is_exact(tol):
    factors = networks.drawn(0, 3, 7, 4)
    found = lh.trace(gram(matrix_map(factors)))
    np.testing.assert_allclose(found.value, np.sum(np.asarray(factors, float) ** 2, axis=(1, 2)), rtol=tol.eigenvalue)
    assert found.exact
    np.testing.assert_array_equal(found.standard_error, np.zeros(3))
    compiled = jax.jit(lambda R: lh.trace(gram(matrix_map(R))).value)(factors)
    np.testing.assert_allclose(compiled, found.value, rtol=tol.eigenvalue)


def test_new_numbers_do_not_recompile(count_compilations):
    one, two = networks.drawn(0, 2, 50, 40)
    lh.trace(gram(matrix_map(one)))
    with count_compilations() as seen:
        lh.trace(gram(matrix_map(two)))
    assert seen.names == []


def test_trace_needs_two_probes():
    with pytest.raises(ValueError, match="`probes` must be at least 2 for an error bar, got 1"):
        lh.Hutchinson(probes=1)


@pytest.mark.parametrize("method", [lh.Dense(), lh.Lanczos(), lh.GolubKahan()], ids=str)
def test_audit_agrees_with_a_right_spectrum(method):
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.normal(size=shape))[0] for shape in ((50, 30), (30, 30)))
    operator = gram(matrix_map(jnp.asarray(left * np.geomspace(0.1, 1, 30) @ right.T)))
    spectrum = lh.spectrum(operator, method, vectors=2)
    found = lh.audit(operator, spectrum)
    assert bool(found.agrees)
    assert found.residual_norms.dtype == np.float64
    np.testing.assert_allclose(found.rayleigh_quotients, spectrum.eigenvalues[-2:], rtol=1e-4)


def test_audit_catches_a_wrong_value_and_vectors_that_are_not_orthogonal():
    operator, _ = symmetric([1.0, 2.0, 4.0])
    spectrum = lh.spectrum(operator, vectors=2)
    moved = dataclasses.replace(spectrum, eigenvalues=spectrum.eigenvalues * 1.01)
    assert not bool(lh.audit(operator, moved).agrees)
    np.testing.assert_allclose(lh.audit(operator, moved).residual_norms, [0.02, 0.04], rtol=1e-3)
    doubled = dataclasses.replace(spectrum, vectors=spectrum.vectors.at[:, 0].set(spectrum.vectors[:, 1]))
    assert float(lh.audit(operator, doubled).orthogonality) > 0.9
    assert not bool(lh.audit(operator, doubled).agrees)


def test_audit_of_a_batch(tol):
    factors = networks.drawn(0, 3, 7, 4)
    operator = gram(matrix_map(factors))
    found = lh.audit(operator, lh.spectrum(operator, vectors=2))
    assert found.agrees.shape == (3,)
    assert found.agrees.all()
    assert found.residual_norms.shape == (3, 2)


def test_messages_of_audit():
    operator, _ = symmetric([1.0, 2.0, 4.0])
    with pytest.raises(ValueError, match="`audit` needs eigenvectors, and the spectrum has none: pass `vectors=k`"):
        lh.audit(operator, lh.spectrum(operator))
    with pytest.raises(ValueError, match=r"`spectrum` has vectors of shape \(2,\), and `operator` takes \(3,\)"):
        lh.audit(operator, lh.spectrum(symmetric([1.0, 2.0])[0], vectors=1))
    with pytest.raises(TypeError, match="`audit` runs on the host, on numbers"):
        jax.jit(lambda matrix: lh.audit(gram(matrix_map(matrix)), lh.spectrum(gram(matrix_map(matrix)), vectors=1)))(
            jnp.eye(3)
        )
