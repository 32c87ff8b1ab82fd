"""Eigenvalues and condition numbers against matrices of prescribed spectrum."""

import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import localhessian as lh
from localhessian.linalg import gram, matrix_map

METHODS = (lh.Dense(), lh.Lanczos(), lh.GolubKahan())


def prescribed_factor(sigma, rows, columns, seed=0):
    """A matrix with these singular values (and zeros besides), in the default dtype."""
    random = np.random.default_rng(seed)
    left = np.linalg.qr(random.normal(size=(rows, rows)))[0][:, : len(sigma)]
    right = np.linalg.qr(random.normal(size=(columns, columns)))[0][:, : len(sigma)]
    return jnp.asarray((left * sigma) @ right.T)


def prescribed_operator(eigenvalues, seed=0):
    """A symmetric operator with these eigenvalues and no factor; its matrix is data, so it does not recompile."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    matrix = jnp.asarray(basis * np.asarray(eigenvalues, float) @ basis.T)
    mv = jax.tree_util.Partial(lambda matrix, v: jnp.matmul(matrix, v, precision="highest"), (matrix + matrix.T) / 2)
    return lh.symmetric_operator(mv, len(eigenvalues))


def full_spectrum(sigma, columns):
    return np.sort(np.concatenate([np.zeros(columns - len(sigma)), np.asarray(sigma) ** 2]))


SPECTRA = {
    "geometric 1e2": np.geomspace(1, 0.1, 12),
    "geometric 1e6": np.geomspace(1, 1e-3, 12),
    "one outlier": np.concatenate([[50.0], np.linspace(1, 2, 11)]),
    "1/k": 1 / np.arange(1, 13),
    "identity": np.ones(12),
    "rank one": np.array([3.0]),
    "two clusters": np.concatenate([np.full(6, 1.0), 0.3 + 1e-6 * np.arange(6)]),
}
SHAPES = {"tall": (30, 12), "square": (12, 12), "wide": (12, 20)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECTRA)
def test_dense_gives_every_eigenvalue_and_the_condition_number(name, shape, tol):
    rows, columns = SHAPES[shape]
    sigma = SPECTRA[name]
    spectrum = lh.spectrum(matrix_map(prescribed_factor(sigma, rows, columns)))
    truth = full_spectrum(sigma, columns)
    np.testing.assert_allclose(spectrum.eigenvalues, truth, atol=tol.eigenvalue * truth[-1])
    assert bool(spectrum.complete)
    kappa = lh.condition_number(spectrum)
    exact = (max(sigma) / min(sigma)) ** 2
    assert int(kappa.rank) == len(sigma)
    assert float(kappa.lower) <= exact <= float(kappa.upper)
    np.testing.assert_allclose(kappa.value, exact, rtol=50 * tol.eigenvalue * exact**0.5)
    assert float(kappa.whole) == (np.inf if len(sigma) < columns else float(kappa.value))


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("name", ["geometric 1e2", "one outlier", "1/k"])
def test_every_method_finds_both_ends(name, method, tol):
    sigma = SPECTRA[name]
    spectrum = lh.spectrum(gram(matrix_map(prescribed_factor(sigma, 30, 12))), method)
    truth = full_spectrum(sigma, 12)
    assert bool(spectrum.converged)
    # Without the factor the small end has the rounding of lambda_max.
    np.testing.assert_allclose(spectrum.lambda_max, truth[-1], rtol=10 * tol.eigenvalue)
    np.testing.assert_allclose(spectrum.lambda_min, truth[0], atol=10 * tol.eigenvalue * truth[-1])
    kappa = lh.condition_number(spectrum)
    assert float(kappa.lower) <= truth[-1] / truth[0] * (1 + tol.eigenvalue) <= float(kappa.upper) * (1 + 1e-3)


def test_small_end_of_float32_data_where_a_float32_gram_matrix_fails():
    """kappa(R^T R) = 1e8: right to 1e-3 from R in float32, by Dense and by Golub-Kahan; R^T R in float32 is off."""
    factor = prescribed_factor(np.geomspace(1, 1e-4, 40), 90, 40).astype(jnp.float32)
    exact = np.linalg.svd(np.asarray(factor, np.float64), compute_uv=False)
    truth = (exact[0] / exact[-1]) ** 2
    for method in (lh.Dense(), lh.GolubKahan()):
        found = lh.condition_number(lh.spectrum(matrix_map(factor), method))
        np.testing.assert_allclose(found.value, truth, rtol=1e-3)
        assert float(found.lower) <= truth <= float(found.upper)
    squared = np.linalg.eigvalsh(np.asarray(factor.T @ factor))
    assert squared[0] < 0.9 * exact[-1] ** 2 or squared[0] > 1.1 * exact[-1] ** 2


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_compiled_whole_equals_driven_from_the_host(method, tol):
    factor = prescribed_factor(np.geomspace(1, 0.1, 8), 20, 8)

    @jax.jit
    def compiled(factor):
        spectrum = lh.spectrum(gram(matrix_map(factor)), method)
        return spectrum.lambda_max, spectrum.lambda_min, lh.condition_number(spectrum).value

    spectrum = lh.spectrum(gram(matrix_map(factor)), method)
    host = spectrum.lambda_max, spectrum.lambda_min, lh.condition_number(spectrum).value
    np.testing.assert_allclose(compiled(factor), host, rtol=100 * tol.eigenvalue)


@pytest.mark.once
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_batched_and_vmapped_equal_one_by_one(method, tol):
    factors = jnp.stack([prescribed_factor(np.geomspace(1, low, 8), 20, 8, i) for i, low in enumerate((0.9, 0.5, 0.1))])
    one_by_one = [lh.condition_number(lh.spectrum(gram(matrix_map(factor)), method)).value for factor in factors]
    batched = lh.condition_number(lh.spectrum(gram(matrix_map(factors)), method)).value
    mapped = jax.vmap(lambda factor: lh.condition_number(lh.spectrum(gram(matrix_map(factor)), method)).value)(factors)
    np.testing.assert_allclose(batched, one_by_one, rtol=100 * tol.eigenvalue)
    np.testing.assert_allclose(mapped, one_by_one, rtol=100 * tol.eigenvalue)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_new_numbers_of_the_same_shapes_do_not_recompile(method, count_compilations):
    one, two = (gram(matrix_map(prescribed_factor(np.geomspace(1, 0.1, 9), 21, 9, seed))) for seed in (0, 1))
    lh.spectrum(one, method)
    with count_compilations() as seen:
        lh.spectrum(two, method)
    assert seen.names == []


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_eigenvectors_of_the_largest_values(method, tol):
    factor = prescribed_factor(np.array([4.0, 2.0, 1.0, 0.5]), 10, 6)
    spectrum = lh.spectrum(gram(matrix_map(factor)), method, vectors=2)
    vectors = np.asarray(spectrum.vectors, np.float64)
    matrix = np.asarray(factor, np.float64).T @ np.asarray(factor, np.float64)
    np.testing.assert_allclose(matrix @ vectors, vectors * [4.0, 16.0], atol=16 * 100 * tol.eigenvalue)


def test_indefinite_operator_is_refused_kappa_plus_but_has_kappa():
    spectrum = lh.spectrum(prescribed_operator([-2.0, 1.0, 3.0, 8.0]))
    kappa = lh.condition_number(spectrum)
    assert lh.Status(int(kappa.status)) is lh.Status.INDEFINITE
    assert np.isnan(kappa.value)
    np.testing.assert_allclose(kappa.whole, 8.0, rtol=1e-4)
    assert int(kappa.rank) == 4


def test_zero_operator_and_order_one():
    zero = lh.condition_number(lh.spectrum(prescribed_operator([0.0, 0.0, 0.0])))
    assert int(zero.rank) == 0
    assert np.isnan(zero.value)
    assert np.isinf(zero.whole)
    for method in METHODS:
        one = lh.spectrum(gram(matrix_map(jnp.array([[3.0]]))), method)
        np.testing.assert_allclose(one.eigenvalues, [9.0], rtol=1e-5)
        assert bool(one.complete)


@pytest.mark.parametrize("method", [lh.Lanczos, lh.GolubKahan])
def test_breakdown_returns_no_spurious_value(method, tol):
    """I (x) C has each eigenvalue 8 times: after 5 steps the space is invariant, and a careless step invents values."""
    sigma = np.repeat(np.array([1.0, 1.5, 2.0, 2.5, 3.0]), 8)
    diagonal = jnp.asarray(sigma)
    operator = gram(lh.linear_map(lambda v: diagonal * v, lambda u: diagonal * u, 40, 40))
    whole, short = (lh.spectrum(operator, method(basis_size=size)) for size in (None, 12))
    assert bool(whole.complete)
    np.testing.assert_allclose(whole.eigenvalues, sigma**2, atol=100 * tol.eigenvalue)
    assert not bool(short.complete)
    real = np.asarray(short.eigenvalues)[np.asarray(short.multiplicities) > 0]
    distance = np.abs(real[:, None] - np.unique(sigma)[None] ** 2).min(axis=1)
    assert distance.max() < 1e-4


def test_a_null_component_fakes_no_kappa_plus():
    """True kappa_plus 1e4, half the space null: Ritz values fall between zero and lambda_min, and must not count."""
    eigenvalues = np.concatenate([np.zeros(60), np.geomspace(1e-4, 1, 60)])
    operator = prescribed_operator(eigenvalues)
    for budget in (10, 30):
        kappa = lh.condition_number(lh.spectrum(operator, lh.Lanczos(max_matvecs=budget)), rtol=1e-5)
        assert float(kappa.lower) <= 1e4 * (1 + 1e-3)
        assert np.isinf(kappa.upper)
    sigma = np.sqrt(eigenvalues[60:])
    factor = matrix_map(prescribed_factor(sigma, 150, 120))
    for budget in (10, 30):
        kappa = lh.condition_number(lh.spectrum(factor, lh.GolubKahan(max_matvecs=budget)))
        assert float(kappa.lower) <= 1e4 * (1 + 1e-3)


def test_budget_spent_is_said_and_the_bound_holds():
    sigma = np.geomspace(1, 1e-3, 150)
    spectrum = lh.spectrum(matrix_map(prescribed_factor(sigma, 300, 150)), lh.GolubKahan(max_matvecs=30))
    kappa = lh.condition_number(spectrum)
    assert lh.Status(int(kappa.status)) is lh.Status.BUDGET_SPENT
    assert not bool(spectrum.converged)
    assert 1 <= float(kappa.lower) <= 1e6
    assert np.isinf(kappa.upper)


def test_residual_norms_are_those_of_float64_arithmetic(tol):
    factor = prescribed_factor(np.geomspace(1, 0.01, 60), 80, 60)
    spectrum = lh.spectrum(gram(matrix_map(factor)), lh.Lanczos(max_matvecs=25, k=4), vectors=4)
    matrix = np.asarray(factor, np.float64).T @ np.asarray(factor, np.float64)
    vectors, values = np.asarray(spectrum.vectors, np.float64), np.asarray(spectrum.eigenvalues)[-4:]
    truth = np.linalg.norm(matrix @ vectors - vectors * values, axis=0)
    np.testing.assert_allclose(spectrum.residual_norms[-4:], truth, atol=10 * tol.eigenvalue)


@given(
    st.lists(st.floats(0.1, 100), min_size=1, max_size=7),
    st.sampled_from([(7, 7), (12, 7), (7, 9)]),
    st.integers(0, 100),
)
def test_interval_contains_the_true_kappa_plus(sigma, shape, seed):
    """Any spectrum, any shape, rank-deficient or not."""
    sigma = np.array(sigma)
    factor = prescribed_factor(sigma, *shape, seed)
    truth = (sigma.max() / sigma.min()) ** 2
    for method in (lh.Dense(), lh.GolubKahan()):
        kappa = lh.condition_number(lh.spectrum(matrix_map(factor), method))
        slack = 1 + 1e-6 if factor.dtype == jnp.float64 else 1 + 1e-4 * truth**0.5
        assert float(kappa.lower) <= truth * slack
        assert truth <= float(kappa.upper) * slack


def test_quantile_condition_number_of_a_known_spectrum():
    spectrum = lh.spectrum(prescribed_operator(np.arange(1.0, 21.0)))
    assert [round(float(lh.quantile_condition_number(spectrum, q)), 3) for q in (0, 0.05, 0.5, 1)] == [20, 20, 2, 1]
    assert np.isnan(lh.quantile_condition_number(lh.spectrum(prescribed_operator(np.ones(300)), lh.Lanczos()), 0.5))


def test_rank_rule_can_be_overridden():
    spectrum = lh.spectrum(matrix_map(prescribed_factor(np.array([1.0, 0.1, 0.01]), 5, 3)))
    assert [int(lh.condition_number(spectrum, rtol=rtol).rank) for rtol in (1e-3, 0.05, 0.5)] == [3, 2, 1]
    with pytest.raises(ValueError, match="`rtol` must lie between 0 and 1, got 2"):
        lh.condition_number(spectrum, rtol=2)


def test_rank_uncertain_when_no_gap_separates_zero():
    sigma = np.array([1.0, 0.5, 3e-3, 1e-3])
    kappa = lh.condition_number(lh.spectrum(matrix_map(prescribed_factor(sigma, 8, 4))), rtol=2e-3)
    assert lh.Status(int(kappa.status)) is lh.Status.RANK_UNCERTAIN
    np.testing.assert_allclose(kappa.gap, 3, rtol=1e-2)


@pytest.mark.parametrize("method", [None, lh.Lanczos()], ids=str)
def test_messages_of_operators_that_mean_nothing(method):
    nan = lh.symmetric_operator(lambda v: v * jnp.nan, 5)
    with pytest.raises(lh.SpectrumError, match="A product with the operator was not finite"):
        lh.spectrum(nan, method)
    assert int(lh.spectrum(nan, method, throw=False).status) == lh.Status.NON_FINITE
    skew = lh.symmetric_operator(lambda v: jnp.triu(jnp.ones((5, 5))) @ v, 5)
    with pytest.raises(lh.SpectrumError, match="The operator is not symmetric"):
        lh.spectrum(skew, method)


def test_messages_of_operators_that_do_not_fit():
    large = lh.symmetric_operator(lambda v: v, 18000)
    sentence = "`Dense(max_size=4096)` cannot hold an operator of size 18000. Use `Lanczos(...)`"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        lh.spectrum(large, lh.Dense())
    with pytest.raises(ValueError, match="`GolubKahan` needs a factor R with H = R"):
        lh.spectrum(prescribed_operator([1.0, 2.0]), lh.GolubKahan())
    with pytest.raises(TypeError, match="`Lanczos` takes a symmetric operator"):
        lh.spectrum(matrix_map(jnp.ones((3, 2))), lh.Lanczos())


@pytest.mark.once
def test_method_is_chosen_by_size_and_factor():
    scaled = lh.linear_map(lambda v: 2 * v, lambda u: 2 * u, 5000, 5000)
    assert lh.spectrum(scaled).method.startswith("Structured")
    factor = lh.linear_map(jnp.cumsum, lambda u: jnp.cumsum(u[::-1])[::-1], 5000, 5000)
    assert lh.spectrum(factor).method.startswith("GolubKahan")
    assert lh.spectrum(gram(factor)).method.startswith("GolubKahan")
    assert lh.spectrum(lh.symmetric_operator(lambda v: v, 5000)).method.startswith("Lanczos")
    assert lh.spectrum(prescribed_operator([1.0, 2.0])).method.startswith("Dense")


@pytest.mark.once
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_device_programs_lower_for_accelerators(platform, method):
    def program(factor):
        spectrum = lh.spectrum(gram(matrix_map(factor)), method)
        return spectrum.eigenvalues, lh.condition_number(spectrum).value

    shape = jax.ShapeDtypeStruct((12, 6), jnp.float32)
    exported = jax.export.export(jax.jit(program), platforms=(platform,))(shape)
    assert exported.platforms == (platform,)
