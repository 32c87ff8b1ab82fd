"""The rank rule: one answer for every method, and a status where rounding hides it."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import localhessian as lh
from localhessian.linalg import gram, matrix_map
from localhessian.linalg.spectra._rank import counted, cutoff

SIZE = 8
METHODS = (lh.Dense(), lh.GolubKahan(), lh.Lanczos())


def factor_of(sigma, dtype, rows=SIZE):
    """A matrix of these singular values, rounded to dtype once."""
    random = np.random.default_rng(len(sigma))
    left, _ = np.linalg.qr(random.standard_normal((rows, rows)))
    right, _ = np.linalg.qr(random.standard_normal((SIZE, SIZE)))
    return jnp.asarray((left[:, : len(sigma)] * np.asarray(sigma)) @ right[: len(sigma)], dtype)


def kappas(R):
    """Each method's condition number of R^T R; of H by its product alone too."""
    H = gram(matrix_map(R))
    alone = lh.symmetric_operator(jax.tree_util.Partial(H.mv), SIZE)
    runs = [(H, method) for method in METHODS] + [(alone, lh.Dense()), (alone, lh.Lanczos())]
    return {f"{i} {method}": lh.condition_number(lh.spectrum(H, method)) for i, (H, method) in enumerate(runs)}


@hypothesis.given(st.lists(st.floats(-7, 0), min_size=1, max_size=SIZE), st.integers(0, 2))
def test_all_methods_agree_or_say_that_the_rank_is_uncertain(exponents, zeros):
    R = factor_of(10.0 ** np.array([0.0, *exponents][: SIZE - zeros]), jnp.result_type(float))
    found = kappas(R)
    for one in found.values():
        # Either a whole interval, or no claim about its upper end.
        assert int(one.status) != lh.Status.CONVERGED or np.isfinite(one.upper)
        assert all(one.lower <= other.upper for other in found.values())


def test_a_method_without_the_factor_does_not_certify_what_rounding_hides(dtype):
    smallest = 10 * float(jnp.finfo(dtype).eps) ** 0.75  # above 100 eps, below sqrt(eps): non-zero by the rule
    found = kappas(factor_of([1.0, 0.5, 0.2, smallest], dtype))
    dense, golub_kahan, *by_products = found.values()
    for kappa in (dense, golub_kahan):
        assert (int(kappa.status), int(kappa.rank)) == (lh.Status.CONVERGED, 4)
        # The entries are rounded to eps, which moves the smallest by eps / smallest; squared.
        np.testing.assert_allclose(kappa.value, smallest**-2, rtol=10 * float(jnp.finfo(dtype).eps) / smallest)
    for kappa in by_products:
        assert (int(kappa.status), int(kappa.rank)) == (lh.Status.RANK_UNCERTAIN, 3)
        assert np.isinf(kappa.upper)
        np.testing.assert_allclose(kappa.lambda_min_nonzero, 0.2**2, rtol=1e-4)


def test_a_given_cutoff_above_the_noise_settles_the_rank_for_every_method(dtype):
    R = factor_of([1.0, 0.5, 0.2], dtype)
    for kappa in (lh.condition_number(lh.spectrum(gram(matrix_map(R)), method), rtol=0.05) for method in METHODS):
        assert (int(kappa.status), int(kappa.rank)) == (lh.Status.CONVERGED, 3)
        assert kappa.lower <= 25 <= kappa.upper * (1 + 1e-5)


@pytest.mark.once
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_keep_what_they_can_hold(dtype):
    R = jnp.diag(jnp.array([1.0, 2.0, 4.0], dtype))
    for method in METHODS[:2]:
        kappa = lh.condition_number(lh.spectrum(matrix_map(R), method))
        assert (float(kappa.value), int(kappa.rank)) == (pytest.approx(16, rel=1e-3), 3)
        assert float(kappa.cutoff) == pytest.approx(4 * 4 * float(jnp.finfo(dtype).eps))
        below = 100 * float(jnp.finfo(dtype).eps) > 1 / 4
        assert (int(kappa.status) == lh.Status.RANK_UNCERTAIN) == below


def test_cutoffs_of_each_arithmetic():
    assert cutoff("float32") == pytest.approx(1.19e-5, rel=1e-2)
    assert cutoff("bfloat16") == pytest.approx(4 / 128)
    assert counted("float64", has_factor=False) == pytest.approx((100 * 2.22e-16) ** 0.5, rel=1e-2)
    assert counted("float64", has_factor=False, rtol=0.1) == 0.1


@pytest.mark.once
@pytest.mark.parametrize("method", METHODS)
def test_zero_has_a_status_of_its_own(method):
    factor = matrix_map(jnp.zeros((2, 5, 4)).at[1].set(jnp.ones((5, 4))))
    operator = gram(factor)
    for run in (lh.spectrum, jax.jit(lh.spectrum, static_argnums=1)):
        kappa = lh.condition_number(run(operator, method))
        assert int(kappa.status[0]) == lh.Status.ZERO
        assert int(kappa.status[1]) != lh.Status.ZERO
        np.testing.assert_array_equal(kappa.rank, [0, 1])
        assert np.isnan(kappa.value[0])
        np.testing.assert_allclose(kappa.value[1], 1, rtol=1e-4)


@pytest.mark.once
def test_zero_is_seen_from_one_end_too():
    H = gram(matrix_map(jnp.zeros((50, 40))))
    for method in (lh.GolubKahan(which="largest", k=2), lh.Lanczos(which="largest", k=2)):
        assert int(lh.condition_number(lh.spectrum(H, method)).status) == lh.Status.ZERO


@pytest.mark.once
def test_under_jit_nothing_is_nan_with_a_good_status():
    def run(scale):
        R = lh.linear_map(lambda v: scale * v, lambda u: scale * u, 300, 300)
        return lh.condition_number(lh.spectrum(R, lh.GolubKahan(max_matvecs=16)))

    kappa = jax.jit(run)(jnp.arange(1.0, 301.0))
    assert int(kappa.status) == lh.Status.BUDGET_SPENT
    assert float(kappa.lower) >= 1
    broken = jax.jit(run)(jnp.full(300, jnp.nan))
    assert int(broken.status) == lh.Status.NON_FINITE


@pytest.mark.once
@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_eigenvalues_beyond_the_dtype_have_a_status_and_the_right_condition_number(method, scale):
    R = matrix_map(jnp.diag(jnp.asarray(scale * np.array([1.0, 2.0, 8.0]), jnp.float32)))
    spectrum = lh.spectrum(R, method)
    kappa = lh.condition_number(spectrum)
    assert int(spectrum.status) == int(kappa.status) == lh.Status.OUT_OF_RANGE
    assert float(kappa.value) == pytest.approx(64, rel=1e-4)


@pytest.mark.refuses
def test_a_factor_of_another_operator_is_refused():
    scale = jnp.array([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="`factor` is not the operator's"):
        lh.symmetric_operator(lambda v: scale * v, 3, factor=matrix_map(5 * jnp.eye(3)))
    with pytest.raises(ValueError, match="`factor` takes vectors of size 4"):
        lh.symmetric_operator(lambda v: scale * v, 3, factor=matrix_map(jnp.eye(4)))
    with pytest.raises(TypeError, match="`factor` must be a linear map"):
        lh.symmetric_operator(lambda v: scale * v, 3, factor=jnp.eye(3))


@pytest.mark.parametrize(
    ("mv", "status"),
    [
        (lambda v: v + 1, lh.Status.NOT_LINEAR),
        (lambda v: v**3, lh.Status.NOT_LINEAR),
        (lambda v: jnp.roll(v, 1), lh.Status.NOT_SYMMETRIC),
    ],
)
def test_products_that_are_none_of_a_symmetric_matrix_are_noticed_by_every_method(mv, status):
    operator = lh.symmetric_operator(mv, 5)
    for method in (lh.Dense(), lh.Lanczos()):
        with pytest.raises(lh.SpectrumError) as raised:
            lh.spectrum(operator, method)
        assert status.message in str(raised.value)
        refused = lh.spectrum(operator, method, throw=False)
        assert (int(refused.status), bool(refused.complete)) == (status, False)
        assert np.isnan(refused.eigenvalues).all()


@pytest.mark.once
@pytest.mark.parametrize("figure", [lh.trace, lh.diagonal, lh.frobenius_norm, lh.range_mean])
def test_estimates_of_products_that_are_not_finite_are_refused(figure):
    with pytest.raises(lh.SpectrumError, match="not finite"):
        figure(lh.symmetric_operator(lambda v: jnp.nan * v, 5))
    estimate = jax.jit(lambda scale: figure(lh.symmetric_operator(lambda v: scale * v, 5)))(jnp.inf)
    assert int(estimate.status) == lh.Status.NON_FINITE
    assert np.isnan(estimate.standard_error).all()


def test_the_range_mean_of_zero_says_so():
    estimate = lh.range_mean(lh.symmetric_operator(lambda v: 0 * v, 5))
    assert int(estimate.status) == lh.Status.ZERO
    assert np.isnan(estimate.value)


def test_condition_numbers_are_of_numpy_in_float64_on_the_host_and_of_jax_under_transformations(dtype):
    spectrum = lh.spectrum(matrix_map(jnp.diag(jnp.array([1.0, 2.0]))))
    assert all(isinstance(field, np.ndarray | np.generic) for field in jax.tree.leaves(lh.condition_number(spectrum)))
    assert lh.condition_number(spectrum).value.dtype == np.float64
    assert jax.jit(lh.condition_number)(spectrum).value.dtype == dtype


@pytest.mark.once
def test_strict_floating_point_errors_of_numpy_end_nothing():
    with np.errstate(all="raise"):
        for scale in (1.0, 1e-30):
            H = lh.symmetric_operator(lambda v, scale=scale: scale * jnp.arange(1.0, 41.0) * v, 40)
            spectrum = lh.spectrum(H, lh.Lanczos(which="largest", k=2), vectors=2)
            lh.condition_number(spectrum)
            lh.audit(H, spectrum)


@pytest.mark.parametrize(
    "settings", [{"k": 1.5}, {"rtol": -5.0}, {"rtol": "small"}, {"max_matvecs": None}, {"k": True}]
)
def test_settings_without_meaning_are_refused_where_they_are_made(settings):
    for method in (lh.Lanczos, lh.GolubKahan):
        with pytest.raises((ValueError, TypeError), match=f"`{next(iter(settings))}` must"):
            method(**settings)


@pytest.mark.parametrize("mv", [lambda v: v + 1e-3, jnp.abs, lambda v: jnp.roll(v, 1)])
def test_estimates_and_traced_programs_notice_products_of_no_symmetric_matrix(mv):
    operator = lh.symmetric_operator(mv, 5)
    for figure in (lh.trace, lh.diagonal, lh.frobenius_norm, lh.range_mean, lh.spectral_density):
        with pytest.raises(lh.SpectrumError, match=r"not linear|not symmetric"):
            figure(operator)
    for method in (lh.Dense(), lh.Lanczos()):
        run = jax.jit(lambda one, method=method: lh.spectrum(lh.symmetric_operator(lambda v: mv(one * v), 5), method))
        found = run(jnp.ones(()))
        wrong = mv(jnp.zeros(1))[0] == 0  # a constant of 1e-3 is rounding of a random product in float32
        if wrong or found.dtype == jnp.float64:
            assert int(found.status) in (lh.Status.NOT_LINEAR, lh.Status.NOT_SYMMETRIC)
            assert np.isnan(found.eigenvalues).all()


@pytest.mark.once
def test_dense_tells_maps_that_are_not_linear_from_those_that_are_random_or_not_adjoint():
    scale = jnp.arange(1.0, 6.0)
    with pytest.raises(lh.SpectrumError, match="not linear"):
        lh.spectrum(lh.linear_map(jnp.abs, lambda u: u, 5, 5), lh.Dense())
    run = jax.jit(lambda s: lh.spectrum(lh.linear_map(lambda v: s * v, lambda u: jnp.roll(u, 1), 5, 5), lh.Dense()))
    assert int(run(scale).status) == lh.Status.NOT_ADJOINT
    right = jax.jit(lambda s: lh.spectrum(lh.linear_map(lambda v: s * v, lambda u: s * u, 5, 5), lh.Dense()))(scale)
    assert int(right.status) == lh.Status.CONVERGED
    np.testing.assert_allclose(right.singular_values, scale, rtol=1e-6)


@pytest.mark.refuses
@pytest.mark.once
@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0, -5.0])
def test_moments_of_another_operator_certify_nothing(value):
    scale = jnp.zeros(60).at[:2].set(jnp.array([1.0, 2.0]))
    R = lh.linear_map(lambda v: scale * v, lambda u: scale * u, 60, 60)
    found = lh.spectrum(R, lh.GolubKahan(which="largest", k=2, basis_size=8))
    for name in ("trace", "frobenius"):
        with pytest.raises(ValueError, match=f"`{name}` must be finite and no less"):
            lh.certify(found, **{name: value})
        traced = jax.jit(lambda moment, name=name: lh.certify(found, **{name: moment}).missing)(value)
        assert np.isinf(traced)
    with pytest.raises(TypeError, match="`trace` must be a number for each operator"):
        lh.certify(found, trace="five")
    with pytest.raises(TypeError, match="`trace` must be a number for each operator"):
        lh.certify(found, trace=10**400)
    assert lh.certify(found, trace=5.0).missing < 1e-4


def test_overflow_is_never_an_invariant_subspace_and_never_agreed_with(dtype):
    scale = 0.9 * float(jnp.finfo(dtype).max) * jnp.linspace(0.5, 1.0, 40)
    R = lh.linear_map(lambda v: 2 * scale * v, lambda u: 2 * scale * u, 40, 40)
    found = lh.spectrum(R, lh.GolubKahan(which="largest", k=2), vectors=2, throw=False)
    assert int(found.status) == int(lh.condition_number(found).status) == lh.Status.NON_FINITE
    assert not lh.audit(R, found).agrees
    root = 10 * float(jnp.finfo(dtype).max) ** 0.5
    huge = lh.linear_map(lambda v: root * v, lambda u: root * u, 40, 40)
    with pytest.raises(lh.SpectrumError, match="outside the range of the dtype"):
        lh.spectral_density(huge)


@pytest.mark.once
def test_golub_kahan_drops_no_value_that_the_rank_rule_of_sixteen_bits_keeps():
    scale = jnp.ones(40, jnp.bfloat16).at[:2].set(jnp.array([4.0, 0.1875], jnp.bfloat16))  # 6 eps of the largest
    R = lh.linear_map(lambda v: scale * v, lambda u: scale * u, 40, 40, dtype=jnp.bfloat16)
    kappa = lh.condition_number(lh.spectrum(R, lh.GolubKahan()))
    assert float(kappa.value) == pytest.approx((4 / 0.1875) ** 2, rel=1e-2)
    assert int(kappa.status) != lh.Status.CONVERGED


@pytest.mark.once
@pytest.mark.parametrize(
    ("method", "settings"),
    [(lh.Dense, {"max_size": -1}), (lh.Dense, {"max_bytes": "a"}), (lh.Structured, {"max_operations": np.nan})],
)
def test_limits_without_meaning_are_refused_where_they_are_made(method, settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must be a positive number"):
        method(**settings)
    with pytest.raises(TypeError, match="`blocks` must be None or a `GolubKahan"):
        lh.Structured(blocks="all")
