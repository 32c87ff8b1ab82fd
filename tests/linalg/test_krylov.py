"""The Krylov engine on hostile operators: restarts, breakdowns, null spaces, broken products, bad settings."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

import localhessian as lh
from localhessian._programs import sums_go_wrong
from localhessian.linalg import gram, matrix_map
from localhessian.linalg.operators import in_loop
from localhessian.linalg.operators._cpu import contains_convolution

pytestmark = pytest.mark.once

RESTARTED = {
    "Lanczos": lh.Lanczos(basis_size=20, which="largest"),
    "GolubKahan": lh.GolubKahan(basis_size=20, which="largest"),
}


def times(matrix, v):
    return jnp.matmul(matrix, v, precision="highest")


def factor_of(sigma, rows, columns, seed=0):
    """A matrix with these singular values (and zeros besides), in the default dtype."""
    random = np.random.default_rng(seed)
    left = np.linalg.qr(random.normal(size=(rows, rows)))[0][:, : len(sigma)]
    right = np.linalg.qr(random.normal(size=(columns, columns)))[0][:, : len(sigma)]
    return jnp.asarray((left * sigma) @ right.T)


def symmetric(eigenvalues, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    matrix = basis * np.asarray(eigenvalues, float) @ basis.T
    return lh.symmetric_operator(Partial(times, jnp.asarray((matrix + matrix.T) / 2)), len(eigenvalues))


def status(spectrum):
    return lh.Status(int(spectrum.status))


@pytest.mark.parametrize("name", RESTARTED)
def test_restarts_find_the_same_end_with_a_short_basis(name, tol):
    method, sigma = RESTARTED[name], np.geomspace(0.3, 1, 120)
    operator = gram(matrix_map(factor_of(sigma, 150, 120)))
    found = lh.spectrum(operator, method)
    compiled = jax.jit(lambda operator: lh.spectrum(operator, method))(operator)
    assert int(found.matvecs) > method.basis_size + 6  # it did restart
    for spectrum in (found, compiled):
        assert status(spectrum) is lh.Status.CONVERGED
        assert not bool(spectrum.complete)
        error = np.abs(np.asarray(spectrum.eigenvalues) - sigma[-3:] ** 2)
        assert (error <= np.asarray(spectrum.residual_norms) + 10 * tol.eigenvalue).all()
        np.testing.assert_allclose(spectrum.lambda_max, 1, rtol=1e-4)


def test_restarts_of_both_ends_of_an_indefinite_operator(tol):
    eigenvalues = np.concatenate([[-3.0, -2.5], np.linspace(-1, 1, 100), [2.0, 4.0]])
    found = lh.spectrum(symmetric(eigenvalues), lh.Lanczos(basis_size=16, k=2, rtol=1e-4), vectors=1)
    assert status(found) is lh.Status.CONVERGED
    np.testing.assert_allclose(found.eigenvalues, [-3, -2.5, 2, 4], rtol=1e-4)
    assert bool(lh.audit(symmetric(eigenvalues), found).agrees)


def test_new_numbers_do_not_recompile_a_restarted_run(count_compilations):
    one, two = (symmetric(np.geomspace(0.3, 1, 60), seed) for seed in (0, 1))
    method = lh.Lanczos(basis_size=12, which="largest", k=1)
    lh.spectrum(one, method)
    with count_compilations() as seen:
        lh.spectrum(two, method)
    assert seen.names == []


def test_the_basis_is_bounded_for_large_operators():
    plan = lh.Lanczos().plan(10**7, 10**7, jnp.dtype("float32"), 0)
    assert (plan.size, plan.steps) == (32, 200)
    assert lh.Lanczos().plan(1000, 1000, jnp.dtype("float32"), 0).size == 200
    assert lh.Lanczos(basis_size=4, k=5).plan(1000, 1000, jnp.dtype("float32"), 0).size == 14


@pytest.mark.parametrize("method", [lh.Lanczos(), lh.GolubKahan(), lh.GolubKahan(basis_size=8, k=1)], ids=str)
def test_batched_problems_end_each_in_their_own_way(method, tol):
    """Identity breaks down after one step, rank one after two, the third converges; none spoils another."""
    sigmas = [np.ones(40), np.array([2.0]), np.geomspace(0.5, 3, 40)]
    factors = jnp.stack([factor_of(sigma, 50, 40, seed) for seed, sigma in enumerate(sigmas)])
    found = lh.spectrum(gram(matrix_map(factors)), method)
    whole = method.basis_size is None
    assert found.complete.tolist() == [whole] * 3
    expected = lh.Status.CONVERGED if whole else lh.Status.INVARIANT_SUBSPACE
    assert [lh.Status(int(code)) for code in found.status[:2]] == [expected] * 2
    np.testing.assert_allclose(found.lambda_max, [1, 4, 9], rtol=1e-3)
    for values, counts, truth in zip(found.eigenvalues, found.multiplicities, sigmas, strict=True):
        real = np.asarray(values)[np.asarray(counts) > 0]
        distance = np.abs(real[:, None] - np.append(truth**2, 0.0)[None]).min(axis=1)
        if whole or truth is not sigmas[2]:
            assert distance.max() < 100 * tol.eigenvalue
    if whole:
        assert lh.condition_number(found).rank.tolist() == [40, 1, 40]


@pytest.mark.parametrize("basis_size", [None, 30])
def test_golub_kahan_finds_the_smallest_non_zero_value_of_a_deficient_square_factor(basis_size):
    """Rounding lets null vectors in as the range is exhausted; their values are not kappa_plus."""
    factor = matrix_map(factor_of(np.geomspace(0.2, 1, 60), 120, 120))
    kappa = lh.condition_number(lh.spectrum(factor, lh.GolubKahan(max_matvecs=600, basis_size=basis_size)))
    np.testing.assert_allclose(kappa.value, 25, rtol=1e-3)
    assert float(kappa.lower) <= 25 * (1 + 1e-4)
    assert np.isfinite(kappa.upper) == (basis_size is None)


@given(
    seed=st.integers(0, 1000),
    low=st.floats(-3, 0),
    rank=st.integers(20, 40),
    budget=st.integers(5, 60),
    wide=st.booleans(),
)
def test_lower_bound_holds_at_any_budget(seed, low, rank, budget, wide):
    sigma = np.geomspace(10**low, 1, rank)
    factor = matrix_map(factor_of(sigma, *((40, 60) if wide else (60, 40)), seed))
    kappa = lh.condition_number(lh.spectrum(factor, lh.GolubKahan(max_matvecs=budget, basis_size=12, k=1)))
    assert not float(kappa.lower) > 10 ** (-2 * low) * (1 + 1e-3)
    assert not float(kappa.upper) < 10 ** (-2 * low) * (1 - 1e-3)


def test_one_end_alone_has_no_kappa_but_a_lower_bound():
    factor = matrix_map(factor_of(np.geomspace(0.1, 1, 60), 80, 60))
    kappa = lh.condition_number(lh.spectrum(factor, lh.GolubKahan(which="largest")))
    assert np.isnan(kappa.value)
    assert 1 <= float(kappa.lower) <= 100


def test_zero_and_identity():
    for method in (lh.GolubKahan(), lh.GolubKahan(basis_size=8)):
        zero = lh.spectrum(matrix_map(jnp.zeros((60, 50))), method)
        assert float(zero.lambda_max) == 0
        assert int(lh.condition_number(zero).rank) == 0
        assert bool(zero.complete) == (method.basis_size is None)
    one = lh.spectrum(symmetric(np.ones(50)), lh.Lanczos(basis_size=8), vectors=2)
    assert status(one) is lh.Status.INVARIANT_SUBSPACE
    assert int(one.multiplicities.sum()) == 1
    assert np.isnan(one.vectors[:, 0]).all()
    np.testing.assert_allclose(np.linalg.norm(one.vectors[:, 1]), 1, rtol=1e-5)
    assert bool(lh.audit(symmetric(np.ones(50)), one).agrees)


def test_more_vectors_than_values_asked_for_are_computed():
    operator = symmetric(np.geomspace(0.1, 1, 60))
    found = lh.spectrum(operator, lh.Lanczos(k=1), vectors=4)
    assert found.vectors.shape == (60, 4)
    assert bool(lh.audit(operator, found).agrees)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_dense_vectors_span_the_null_space_too(shape, tol):
    matrix = factor_of(np.array([3.0, 1.0]), *shape)
    wide = np.asarray(matrix, np.float64)
    for spectrum in (
        lh.spectrum(matrix_map(matrix), vectors=shape[1]),
        jax.jit(lambda matrix: lh.spectrum(matrix_map(matrix), vectors=shape[1]))(matrix),
    ):
        vectors = np.asarray(spectrum.vectors, np.float64)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(shape[1]), atol=10 * tol.eigenvalue)
        expected = vectors * np.asarray(spectrum.eigenvalues)
        np.testing.assert_allclose(wide.T @ wide @ vectors, expected, atol=100 * tol.eigenvalue)


@pytest.mark.parametrize("method", [lh.Dense(), lh.Lanczos(), lh.GolubKahan()], ids=str)
def test_operators_that_close_over_traced_data(method, tol):
    @jax.jit
    def top(matrix):
        factor = lh.linear_map(lambda v: matrix @ v, None, 5, 5)
        operator = gram(factor) if method != lh.Lanczos() else lh.symmetric_operator(lambda v: matrix @ matrix @ v, 5)
        return lh.spectrum(operator, method).lambda_max

    np.testing.assert_allclose(top(jnp.diag(jnp.arange(1.0, 6.0))), 25, rtol=10 * tol.eigenvalue)


def test_a_convolution_never_stands_in_a_compiled_loop_on_the_cpu():
    """jax#12868: there it would be a hundred times slower."""
    if jax.default_backend() != "cpu":
        pytest.skip("accelerators run loops well")

    def mv(v):
        image = v.reshape(1, 4, 4, 2)
        kernel = jnp.ones((3, 3, 2, 2), v.dtype)
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        ).reshape(-1)

    def run(key):
        operator = lh.symmetric_operator(mv, 32)
        return lh.spectrum(operator, lh.Lanczos(max_matvecs=12, basis_size=8, k=1), key=key).eigenvalues

    program = jax.make_jaxpr(run)(jax.random.key(0))
    assert contains_convolution(program)  # beside loops
    loops = [eqn for eqn in program.eqns if eqn.primitive.name in {"while", "scan"}]
    assert loops
    for loop in loops:
        assert not any(
            contains_convolution(loop.params[name]) for name in ("body_jaxpr", "jaxpr") if name in loop.params
        )
    np.testing.assert_allclose(
        jax.jit(run)(jax.random.key(0))[-1], lh.spectrum(lh.symmetric_operator(mv, 32)).lambda_max, rtol=1e-3
    )


def test_a_compiled_program_over_convolutions_does_not_grow_with_its_steps():
    def equations(steps):
        numbers, kernel = ("NWC", "WIO", "NWC"), jnp.arange(12.0).reshape(3, 2, 2)
        convolve = lambda v: jax.lax.conv_general_dilated(
            v.reshape(1, 15, 2), kernel.astype(v.dtype), (1,), "SAME", dimension_numbers=numbers
        ).ravel()
        operator = lh.linear_map(convolve, None, 30, 30)
        method = lh.GolubKahan(max_matvecs=steps, basis_size=8, k=1)
        return len(
            str(jax.make_jaxpr(lambda key: lh.spectrum(operator, method, key=key).lambda_max)(jax.random.key(0)))
        )

    assert equations(400) < 1.1 * equations(100)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_convolutions_are_products_in_loops(data):
    """Any window, stride, dilation, padding, groups of channels or of the batch; with both transposes."""
    dimensions = data.draw(st.integers(1, 2))
    draw = lambda low, high: [data.draw(st.integers(low, high)) for _ in range(dimensions)]
    image, window, strides, holes, apart = draw(3, 6), draw(1, 4), draw(1, 2), draw(1, 2), draw(1, 2)
    padding = list(zip(draw(-1, 3), draw(-1, 3), strict=True))
    groups = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    numbers = ("NWC", "WIO", "NWC") if dimensions == 1 else ("NHWC", "HWIO", "NHWC")
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = random.standard_normal((2 * groups[1], *image, 2 * groups[0]))
    kernel = random.standard_normal((*window, 2, 4))
    with jax.enable_x64(True):
        convolve = lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, strides, padding, holes, apart, numbers, *groups
        )
        shape = jax.eval_shape(convolve, x, kernel).shape
        assume(0 not in shape)

        def step(state):
            out, transpose = jax.vjp(convolve, *state[:2])
            return (*transpose(state[2]), out)

        start = jax.tree.map(jnp.asarray, (x, kernel, random.standard_normal(shape)))
        assert not contains_convolution(jax.make_jaxpr(in_loop(step))(start))
        for ours, truth in zip(jax.jit(in_loop(step))(start), step(start), strict=True):
            np.testing.assert_allclose(ours, truth, atol=1e-11)


def test_products_that_are_broken_are_refused_before_long_work():
    def nan(v):
        return v * jnp.nan

    for operator, method in [
        (lh.linear_map(nan, nan, 50, 60 - 10), lh.GolubKahan()),
        (lh.symmetric_operator(nan, 50), lh.Lanczos()),
    ]:
        with pytest.raises(lh.SpectrumError, match="A product with the operator was not finite"):
            lh.spectrum(operator, method)
        found = lh.spectrum(operator, method, throw=False)
        assert status(found) is lh.Status.NON_FINITE
        assert np.isnan(found.eigenvalues).all()
        assert int(found.matvecs) < 10


METHODS = [None, lh.Dense(), lh.GolubKahan(), lh.GolubKahan(which="largest", k=1, max_matvecs=8, basis_size=6)]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(30, 40), (40, 30)])
@pytest.mark.parametrize("factor", [2, -1, 1.1])
def test_a_transpose_that_is_none_is_refused(method, rows, columns, factor):
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(rows, columns)))
    wrong = lh.linear_map(Partial(times, matrix), Partial(times, factor * matrix.T), columns, rows)
    with pytest.raises(lh.SpectrumError, match="The transposed product does not belong to the product"):
        lh.spectrum(wrong, method)
    found = lh.spectrum(wrong, method, throw=False)
    assert status(found) is lh.Status.NOT_ADJOINT
    assert np.isnan(found.eigenvalues).all()
    assert not bool(found.complete)


def noisy(matrix):
    """A product with the matrix, and something that changes from call to call."""
    random = np.random.default_rng(0)

    def mv(v):
        out = times(matrix, v)
        shape = jax.ShapeDtypeStruct(out.shape, out.dtype)
        noise = lambda v: random.normal(size=v.shape).astype(v.dtype)
        return out + jax.pure_callback(noise, shape, out, vmap_method="broadcast_all")

    return mv


@pytest.mark.parametrize("method", [None, lh.Lanczos()], ids=str)
def test_an_operator_that_answers_differently_twice_is_refused(method):
    with pytest.raises(lh.SpectrumError, match="The same product gave two different answers"):
        lh.spectrum(lh.symmetric_operator(noisy(jnp.eye(40)), 40), method)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("side", [0, 1])
def test_a_map_that_answers_differently_twice_is_refused(method, side):
    """On either side; a side that the matrix was not made from may be told from the other by its noise only."""
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(50, 40)))
    products = [Partial(times, matrix), Partial(times, matrix.T)]
    products[side] = noisy((matrix, matrix.T)[side])
    found = lh.spectrum(lh.linear_map(*products, 40, 50), method, throw=False)
    told = {lh.Status.NOT_DETERMINISTIC}
    if side and not isinstance(method, lh.GolubKahan):
        told = {lh.Status.NOT_ADJOINT}
    assert status(found) in told


@pytest.mark.once
def test_noise_is_told_from_a_wrong_transpose_where_methods_are_compiled_whole(monkeypatch):
    """As on accelerators; equal products in one program are one product."""
    sums_go_wrong()  # asked of the device that there is
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(50, 40)))
    method = lh.GolubKahan(max_matvecs=8, which="largest", k=1, basis_size=6)
    for forward, backward, told in (
        (noisy(matrix), Partial(times, matrix.T), lh.Status.NOT_DETERMINISTIC),
        (Partial(times, matrix), noisy(matrix.T), lh.Status.NOT_DETERMINISTIC),
        (Partial(times, matrix), Partial(times, -2 * matrix.T), lh.Status.NOT_ADJOINT),
    ):
        found = lh.spectrum(lh.linear_map(forward, backward, 40, 50), method, throw=False)
        assert status(found) == told


def test_asymmetry_within_rounding_is_in_the_error_bound(dtype):
    skewed = np.eye(50)
    skewed[0, 1] = 50 * float(jnp.finfo(dtype).eps)
    found = lh.spectrum(lh.symmetric_operator(Partial(times, jnp.asarray(skewed)), 50))
    assert status(found) is lh.Status.CONVERGED
    assert float(found.residual_norms[0]) > skewed[0, 1] / 2


def test_a_fine_rtol_does_not_make_rounding_indefinite():
    found = lh.spectrum(symmetric(np.concatenate([np.zeros(20), np.linspace(0.5, 1, 20)])))
    kappa = lh.condition_number(found, rtol=1e-12)
    assert lh.Status(int(kappa.status)) is lh.Status.RANK_UNCERTAIN
    assert np.isinf(kappa.upper)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"which": "LA"}, "`which` must be 'both', 'largest' or 'smallest', got 'LA'."),
        ({"k": 0}, "`k` must be a whole number of at least 1, got 0."),
        ({"max_matvecs": 0}, "`max_matvecs` must be a whole number of at least 1, got 0."),
        ({"basis_size": 3}, "`basis_size` must be a whole number of at least 4, got 3."),
        ({"rtol": 0.0}, "`rtol` must lie between 0 and 1, got 0.0."),
    ],
)
@pytest.mark.parametrize("method", [lh.Lanczos, lh.GolubKahan])
def test_messages_of_settings(method, settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        method(**settings)


@pytest.mark.parametrize("vectors", [-1, 4])
def test_message_of_vectors(vectors):
    message = f"`vectors` must lie between 0 and the operator's size 3, got {vectors}."
    with pytest.raises(ValueError, match=re.escape(message)):
        lh.spectrum(symmetric([1.0, 2.0, 3.0]), vectors=vectors)
