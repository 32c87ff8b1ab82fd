"""Hostile operators, every method: nothing false is certified, the interval holds, vectors stand up to an audit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.tree_util import Partial

import localhessian as lh
from localhessian.linalg import gram, matrix_map
from localhessian.linalg.spectra._rank import noise

N = 72

SINGULAR_VALUES = {
    "identity": np.ones(N),
    "zero": np.zeros(0),
    "rank one": np.array([3.0]),
    "each value 8 times": np.repeat(np.linspace(1, 3, N // 8), 8),
    "clusters of width 1e-9": np.sort(np.repeat([0.5, 1.0, 2.0], N // 3) * (1 + 1e-9 * np.arange(N))),
    "geometric, kappa 1e2": np.geomspace(0.1, 1, N),
    "geometric, kappa 1e6": np.geomspace(1e-3, 1, N),
    "geometric, kappa 1e8": np.geomspace(1e-4, 1, N),
    "geometric, kappa 1e12": np.geomspace(1e-6, 1, N),
    "linear, kappa 1e4": np.linspace(1e-2, 1, N),
    "linear, kappa 1e8": np.linspace(1e-4, 1, N),
    "one outlier": np.append(np.linspace(1, 2, N - 1), 1e3),
    "one outlier, kappa 1e10": np.append(np.linspace(1, 2, N - 1), 1e5),
    "one small outlier, kappa 1e8": np.append(np.linspace(1, 2, N - 1), 2e-4),
    "1/k": 1 / np.arange(1, N + 1),
    "1/k, kappa 1e12": 1 / np.linspace(1, 1e3, N) ** 2,
    "half the space null, kappa_plus 1e4": np.geomspace(1e-2, 1, N // 2),
    "tiny": 1e-12 * np.geomspace(0.1, 1, N),
    "huge": 1e12 * np.geomspace(0.1, 1, N),
}
METHODS = {
    "Dense": lh.Dense(),
    "Lanczos, whole": lh.Lanczos(),
    "Lanczos, restarted": lh.Lanczos(basis_size=20, max_matvecs=90, which="largest"),
    "Lanczos, blocks": lh.Lanczos(basis_size=24, max_matvecs=120, block_size=4),
    "Golub-Kahan, whole": lh.GolubKahan(),
    "Golub-Kahan, restarted": lh.GolubKahan(basis_size=20, max_matvecs=90),
    "Golub-Kahan, blocks": lh.GolubKahan(basis_size=24, max_matvecs=120, block_size=4, which="largest"),
    "Lanczos, smallest": lh.Lanczos(basis_size=24, which="smallest"),
    "Golub-Kahan, smallest": lh.GolubKahan(basis_size=24, which="smallest"),
    "Lanczos, compiled": lh.Lanczos(basis_size=20, max_matvecs=60, block_size=2),
    "Golub-Kahan, compiled": lh.GolubKahan(basis_size=20, max_matvecs=60, block_size=2),
}


@functools.partial(jax.jit, static_argnums=1)
def compiled(operator, method):
    return lh.spectrum(operator, method, vectors=2)


def times(matrix, v):
    return jnp.matmul(matrix, v, precision="highest")


def factor(sigma, rows=N + 8, columns=N, seed=0):
    random = np.random.default_rng(seed)
    left = np.linalg.qr(random.normal(size=(rows, rows)))[0][:, : len(sigma)]
    right = np.linalg.qr(random.normal(size=(columns, columns)))[0][:, : len(sigma)]
    return jnp.asarray((left * sigma) @ right.T)


def symmetric(matrix):
    matrix = jnp.asarray(matrix)
    return lh.symmetric_operator(Partial(times, (matrix + matrix.T) / 2), len(matrix))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SINGULAR_VALUES)
def test_hostile_semi_definite_operators(name, method, tol):
    in_one_program = method.endswith("compiled")
    sigma, method = SINGULAR_VALUES[name], METHODS[method]
    operator = gram(matrix_map(factor(sigma)))
    truth = np.sort(np.append(np.zeros(N - len(sigma)), sigma**2))
    found = compiled(operator, method) if in_one_program else lh.spectrum(operator, method, vectors=2)
    rounding = 100 * tol.eigenvalue * max(truth[-1], 1e-36)
    values = np.asarray(found.eigenvalues, np.float64)
    there = np.asarray(found.multiplicities) > 0
    distance = np.abs(values[:, None] - truth[None]).min(axis=1)
    assert (distance <= np.asarray(found.residual_norms) + rounding)[there].all()
    assert bool(lh.audit(operator, found).agrees)
    if bool(found.complete):
        every = np.repeat(values[there], np.asarray(found.multiplicities)[there])
        np.testing.assert_allclose(np.sort(every), truth, atol=rounding)
    if method.__class__ is lh.Dense or method.basis_size is None:
        assert bool(found.complete)
    if lh.Status(int(found.status)) is lh.Status.CONVERGED and len(sigma) and found.ends != "smallest":
        np.testing.assert_allclose(found.lambda_max, truth[-1], rtol=2e-3)
    kappa = lh.condition_number(found)
    assert lh.Status(int(kappa.status)) is not lh.Status.INDEFINITE
    if not len(sigma):
        assert int(kappa.rank) == 0
        return
    assert not float(kappa.lower) > (sigma.max() / sigma.min()) ** 2 * (1 + 1e-3)
    cutoff = 100 * float(jnp.finfo(found.dtype).eps) * sigma.max()
    if found.singular_values is not None and not (cutoff / 2 < sigma.min() < 2 * cutoff):
        exact = (sigma.max() / sigma[sigma > cutoff].min()) ** 2
        if ((cutoff / 3 < sigma) & (sigma < 3 * cutoff)).any() and bool(found.complete):
            assert lh.Status(int(kappa.status)) is lh.Status.RANK_UNCERTAIN
        else:
            assert not float(kappa.upper) < exact * (1 - 1e-3)


@pytest.mark.once
@pytest.mark.parametrize("unit", [1e-28, 1e-20, 1e20, 1e28])
def test_the_unit_of_an_operator_is_of_no_matter(unit, tol):
    """Squares of its numbers vanish or overflow in float32."""
    sigma = np.geomspace(0.1, 1, 40)
    matrix = unit * np.asarray(factor(sigma, 48, 40), np.float64)
    A, H = jnp.asarray(matrix), symmetric(matrix.T / unit @ matrix)
    for method in (lh.Dense(), lh.Lanczos(), lh.Lanczos(max_matvecs=33, basis_size=20, block_size=3)):
        for run in (lh.spectrum, jax.jit(lh.spectrum, static_argnums=1)):
            found = run(H, method)
            np.testing.assert_allclose(found.lambda_max / unit, 1, rtol=1e-3)
            # A whole Krylov space tells each value's place to 100 eps lambda_max, of which the smallest is a hundredth.
            rel = 1e-3 if isinstance(method, lh.Dense) else 1e-3 + 100 * noise(H.dtype)
            assert float(lh.condition_number(found).lower) == pytest.approx(100, rel=rel) or not bool(found.complete)
    for method in (lh.Dense(), lh.GolubKahan()):
        for run in (lh.spectrum, jax.jit(lh.spectrum, static_argnums=1)):
            found = run(matrix_map(A), method)
            np.testing.assert_allclose(found.singular_values, unit * sigma, rtol=1e-3)
            assert float(lh.condition_number(found).lower) == pytest.approx(100, rel=1e-3)
    squares = sigma**2
    assert float(lh.trace(H).value) == pytest.approx(unit * squares.sum(), rel=0.2)
    assert float(lh.frobenius_norm(H, lh.Hutchinson(probes=40)).value) == pytest.approx(
        unit * np.linalg.norm(squares), rel=1e-4
    )
    assert float(lh.range_mean(H, lh.Hutchinson(probes=40)).value) == pytest.approx(
        unit * (squares**2).sum() / squares.sum(), rel=1e-4
    )
    density = lh.spectral_density(H, axis="log", bins=8, probes=4, steps=20)
    assert float(density.largest) == pytest.approx(unit, rel=1e-3)
    assert bool(lh.audit(H, lh.spectrum(H, vectors=2)).agrees)


@pytest.mark.parametrize("which", ["Lanczos", "GolubKahan"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_give_a_status_and_no_warning(value, which):
    matrix = np.eye(30)
    matrix[3, 3] = value
    operator = symmetric(matrix) if which == "Lanczos" else matrix_map(jnp.asarray(matrix))
    found = lh.spectrum(operator, getattr(lh, which)(), throw=False)
    assert lh.Status(int(found.status)) is lh.Status.NON_FINITE
    with pytest.raises(lh.SpectrumError, match="was not finite"):
        lh.spectral_density(operator, steps=5)


@pytest.mark.parametrize(("log", "tolerance"), [(8, 1e-3), (10, 1e-2)])
def test_the_small_end_from_float32_data_where_the_product_in_float32_has_none(log, tolerance):
    """lambda_min of R^T R for R in float32; the truth is the SVD of that very R in float64."""
    R = np.asarray(factor(np.geomspace(10 ** (-log / 2), 1, 48), 96, 48), np.float32)
    truth = np.linalg.svd(R.astype(np.float64), compute_uv=False)[-1] ** 2
    operator = gram(matrix_map(jnp.asarray(R)))
    for method in (lh.Dense(), lh.GolubKahan()):
        found = lh.spectrum(operator, method)
        np.testing.assert_allclose(found.lambda_min, truth, rtol=tolerance)
        assert int(lh.condition_number(found, rtol=1e-6).rank) == 48
    assert np.linalg.eigvalsh(R.T @ R)[0] < 0 or log == 8
    assert abs(np.linalg.eigvalsh(R.T @ R)[0] - truth) > tolerance * truth


@pytest.mark.once
@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_an_indefinite_spectrum_is_what_arpack_finds(which):
    eigenvalues = np.concatenate([[-9.0, -7.5], np.linspace(-1, 2, 197), [5.0]])
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(200, 200)))[0]
    matrix = basis * eigenvalues @ basis.T
    found = lh.spectrum(symmetric(matrix), lh.Lanczos(which=which, k=2, rtol=1e-5, basis_size=30, max_matvecs=900))
    arpack = {"largest": "LA", "smallest": "SA", "both": "BE"}[which]
    count = 4 if which == "both" else 2
    second = scipy.sparse.linalg.eigsh((matrix + matrix.T) / 2, count, which=arpack, return_eigenvectors=False)
    assert lh.Status(int(found.status)) is lh.Status.CONVERGED
    np.testing.assert_allclose(found.eigenvalues, np.sort(second), atol=1e-4)


def test_order_one_and_as_many_values_as_there_are():
    for method in METHODS.values():
        one = lh.spectrum(gram(matrix_map(jnp.array([[3.0]]))), method)
        np.testing.assert_allclose(one.eigenvalues, [9.0], rtol=1e-5)
        assert bool(one.complete)
    diagonal = np.arange(1.0, 8.0)
    for method in (lh.Lanczos(k=7), lh.Lanczos(k=7, block_size=3), lh.GolubKahan(k=7, block_size=3)):
        found = lh.spectrum(gram(matrix_map(jnp.diag(jnp.asarray(diagonal)))), method, vectors=7)
        np.testing.assert_allclose(found.eigenvalues, diagonal**2, rtol=1e-5)
        assert found.vectors.shape == (7, 7)


@pytest.mark.parametrize("kind", [lh.Lanczos, lh.GolubKahan])
def test_a_block_sees_copies(kind):
    """The largest value four times, in a space too large to be seen whole."""
    sigma = np.concatenate([np.full(4, 2.0), np.geomspace(0.1, 1, 296)])
    operator = gram(matrix_map(factor(sigma, 300, 300)))
    found = lh.spectrum(operator, kind(which="largest", k=4, block_size=4, basis_size=24))
    assert lh.Status(int(found.status)) is lh.Status.CONVERGED
    np.testing.assert_allclose(found.eigenvalues, np.full(4, 4.0), rtol=1e-3)


@pytest.mark.once
def test_a_warm_start_saves_products_and_gives_up_probability():
    matrix = np.asarray(factor(np.geomspace(0.3, 1, 300), 300, 300))
    moved = matrix + 1e-3 * np.random.default_rng(5).normal(size=matrix.shape) / 300**0.5
    for method in (lh.Lanczos(which="largest", k=1, rtol=1e-4), lh.GolubKahan(which="largest", k=1, rtol=1e-4)):
        before = lh.spectrum(gram(matrix_map(jnp.asarray(matrix))), method, vectors=1)
        operator = gram(matrix_map(jnp.asarray(moved, matrix.dtype)))
        cold, warm = lh.spectrum(operator, method), lh.spectrum(operator, method, start=before.vectors)
        assert int(warm.matvecs) <= 0.75 * int(cold.matvecs)
        np.testing.assert_allclose(warm.lambda_max, cold.lambda_max, rtol=1e-3)
        assert float(cold.failure_probability()) < 0.1
        assert float(warm.failure_probability()) == 1
        assert float(lh.condition_number(warm).failure_probability) == 1


@pytest.mark.once
@pytest.mark.parametrize("method", [lh.Lanczos, lh.GolubKahan])
def test_the_stated_failure_probability_bounds_the_frequency(method):
    """800 random starts of 4 steps on one matrix; the bound is loose, but a bound."""
    diagonal = jnp.asarray(np.append(np.full(39, 0.5), 1.0))
    batch = matrix_map(jnp.broadcast_to(jnp.diag(jnp.sqrt(diagonal)), (800, 40, 40)))
    found = lh.spectrum(gram(batch), method(which="largest", k=1, max_matvecs=4))
    stated = np.asarray(found.failure_probability(0.45))
    missed = np.mean(np.asarray(found.lambda_max) * 1 < (1 - 0.45))
    assert missed <= stated.max()
    assert (np.asarray(lh.spectrum(gram(batch)).failure_probability()) == 0).all()


@pytest.mark.parametrize("moment", ["trace", "frobenius"])
def test_exact_moments_certify_a_low_rank(moment):
    """Rank 3 of 400, seen by a short basis: complete as far as a cutoff of 1e-2 can tell."""
    sigma = np.array([1.0, 2.0, 4.0])
    operator = gram(matrix_map(factor(sigma, 400, 400)))
    method = lh.Lanczos if moment == "frobenius" else lh.GolubKahan
    found = lh.spectrum(operator, method(which="largest", k=3, basis_size=12))
    assert np.isinf(lh.condition_number(found, rtol=1e-2).upper)
    exact = {"trace": (sigma**2).sum(), "frobenius": (sigma**4).sum() ** 0.5}[moment]
    kappa = lh.condition_number(lh.certify(found, **{moment: exact}), rtol=0.04)
    assert (int(kappa.rank), np.isinf(kappa.whole)) == (3, True)
    np.testing.assert_allclose([kappa.lower, kappa.value, kappa.upper], 16, rtol=1e-3)
    # What was found is not all of this trace: then nothing is certified.
    more = lh.certify(found, **{moment: 1.1 * exact})
    assert np.isinf(lh.condition_number(more, rtol=0.04).upper)


@pytest.mark.once
@pytest.mark.parametrize("kind", [lh.Lanczos, lh.GolubKahan])
def test_a_start_that_is_nearly_invariant_fakes_no_small_end(kind, tol):
    """The exact vectors of the largest values: their space alone would call the fourth largest the smallest."""
    sigma = np.geomspace(0.05, 1, 300)
    operator = gram(matrix_map(factor(sigma, 320, 300)))
    start = lh.spectrum(operator, lh.Dense(), vectors=4).vectors
    found = lh.spectrum(operator, kind(k=1, max_matvecs=60, basis_size=40), start=start)
    kappa = lh.condition_number(found)
    assert float(kappa.value) > 200  # their own ratio is 1.08
    assert float(kappa.lower) <= 400 * (1 + tol.eigenvalue)
    largest = lh.spectrum(operator, kind(which="largest", k=4), start=start)
    assert int(largest.matvecs) <= 12  # four values, four residuals, and hardly more
    np.testing.assert_allclose(largest.eigenvalues, sigma[-4:] ** 2, rtol=1e-3)


@pytest.mark.parametrize("kind", [lh.Lanczos, lh.GolubKahan])
@pytest.mark.parametrize("block_size", [1, 2])
@pytest.mark.parametrize("columns", ["zero", "copies", "not finite"])
def test_starts_that_begin_nothing_are_replaced(kind, block_size, columns, tol):
    sigma = np.geomspace(0.3, 1, 40)
    operator = gram(matrix_map(factor(sigma, 48, 40)))
    one = np.random.default_rng(3).normal(size=(40, 1))
    start = {
        "zero": np.zeros((40, 2)),
        "copies": np.concatenate([one, -one, one, -one], axis=1),
        "not finite": np.full((40, 1), np.nan),
    }[columns]
    found = lh.spectrum(operator, kind(block_size=block_size), start=jnp.asarray(start, operator.dtype))
    assert bool(found.complete)
    np.testing.assert_allclose(found.eigenvalues, sigma**2, atol=10 * tol.eigenvalue)


@pytest.mark.parametrize("kind", [lh.Lanczos, lh.GolubKahan])
def test_the_smallest_values_alone_know_the_size_of_the_whole(kind):
    """Rounding of the large values is not an indefinite matrix, nor a rank."""
    sigma = np.append(np.linspace(1, 3, 40), np.zeros(160))
    operator = gram(matrix_map(factor(sigma, 200, 200)))
    found = lh.spectrum(operator, kind(which="smallest", k=2, block_size=2, max_matvecs=60, basis_size=40))
    kappa = lh.condition_number(found)
    assert lh.Status(int(kappa.status)) is not lh.Status.INDEFINITE
    assert float(kappa.cutoff) > 50 * float(jnp.finfo(operator.dtype).eps)
    assert not float(kappa.lower) > 9 * (1 + 1e-3)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
@pytest.mark.parametrize("rank", [0, 2])
def test_vectors_of_zero_values_are_unit_vectors_too(shape, rank):
    operator = gram(matrix_map(factor(np.arange(1.0, rank + 1), *shape)))
    found = lh.spectrum(operator, lh.GolubKahan(), vectors=4)
    vectors = np.asarray(found.vectors, np.float64)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(4), atol=1e-5)
    assert bool(lh.audit(operator, found).agrees)


@pytest.mark.parametrize("budget", [5, 30, 200])
@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_triplets_that_have_not_converged_stand_up_to_an_audit(which, budget):
    operator = gram(matrix_map(factor(np.geomspace(1e-3, 1, 90), 90, 140)))
    found = lh.spectrum(operator, lh.GolubKahan(which=which, max_matvecs=budget, basis_size=20), vectors=3)
    assert bool(lh.audit(operator, found).agrees)


def test_a_spectrum_without_values_warns_of_nothing():
    found = lh.spectrum(symmetric(np.full((30, 30), np.nan)), lh.Lanczos(), throw=False)
    kappa = lh.condition_number(found)
    assert np.isnan([found.lambda_max, found.lambda_min, kappa.value, kappa.lower, kappa.whole]).all()


def test_a_tight_cluster_is_counted():
    """Three of the eight largest within 7e-5, two of them within 7e-8: ARPACK leaves one out for some starts."""
    top = [1.0300, 1.0200, 1.0120, 1.00589219, 1.00589283, 1.00589290, 1.003, 1.0005, 0.9995, 0.9991]
    values = np.sort(np.concatenate([top, np.linspace(0, 0.998, 1990)]))
    operator = lh.symmetric_operator(Partial(jnp.multiply, jnp.asarray(values)), 2000)
    method = lh.Lanczos(which="largest", k=8, rtol=1e-5, block_size=3, max_matvecs=1000)
    found = lh.spectrum(operator, method)
    assert bool(found.converged)
    np.testing.assert_allclose(found.eigenvalues, values[-8:], atol=2e-5)


def test_messages_of_start_and_certify():
    operator = symmetric(np.eye(5))
    with pytest.raises(ValueError, match=r"`start` must hold vectors in columns, shape \(5,\) and one more axis, got"):
        lh.spectrum(operator, lh.Lanczos(), start=jnp.ones((4, 1)))
    found = lh.spectrum(operator, lh.Lanczos())
    with pytest.raises(ValueError, match="`certify` needs an exact moment: pass `trace`, `frobenius` or both"):
        lh.certify(found)
    with pytest.raises(ValueError, match="`trace` certifies a semi-definite operator"):
        lh.certify(found, trace=5.0)
    with pytest.raises(ValueError, match="`min_matvecs` must not exceed `max_matvecs`, got 8 and 5"):
        lh.GolubKahan(max_matvecs=5, min_matvecs=8)
    with pytest.raises(ValueError, match="`block_size` must not exceed `max_matvecs`, got 8 and 5"):
        lh.Lanczos(block_size=8, max_matvecs=5)


@pytest.mark.once
def test_both_ways_to_run_agree_with_blocks_and_restarts(tol):
    operator = gram(matrix_map(factor(np.geomspace(0.3, 1, 90), 100, 90)))
    for method in (lh.Lanczos, lh.GolubKahan):
        settings = method(block_size=2, basis_size=12, k=2, which="largest", rtol=1e-4, max_matvecs=120)
        host = lh.spectrum(operator, settings)
        compiled = jax.jit(lambda operator, settings=settings: lh.spectrum(operator, settings))(operator)
        assert int(host.status) == int(compiled.status) == 0
        np.testing.assert_allclose(host.eigenvalues, compiled.eigenvalues, rtol=1e-6 + 10 * tol.eigenvalue)
