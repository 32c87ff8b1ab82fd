"""Random starts of iterations: of factors of low rank, beyond the answer, and what they tell of all eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import localhessian as lh
from localhessian.linalg import gram, matrix_map
from localhessian.linalg.krylov import HOST, TRACED


def diagonal(sigma, rows, columns):
    """With these singular values, and zeros; random starts prefer no direction."""
    return jnp.zeros((rows, columns)).at[jnp.arange(len(sigma)), jnp.arange(len(sigma))].set(jnp.asarray(sigma))


@pytest.mark.once
def test_products_are_made_beyond_the_answer_and_an_exhausted_space_does_not_take_it_back():
    """The first has six directions and its answer after some of them; of the others one has its answer late."""
    sigmas = [np.array([10.0, 3, 2, 1, 0.5, 0.3]), np.r_[5.0, np.linspace(0.5, 1, 39)], np.linspace(1, 2, 40)]
    factors = jnp.stack([diagonal(sigma, 50, 40) for sigma in sigmas])
    method = lh.GolubKahan(which="largest", k=1, rtol=3e-3, basis_size=16, min_matvecs=12)
    found = lh.spectrum(gram(matrix_map(factors[:2])), method)
    assert int(found.matvecs) == 12 + 1  # and one for the residual
    assert found.status.tolist() == [0, 0]
    np.testing.assert_allclose(found.lambda_max, [100, 25], rtol=1e-4)
    late = lh.spectrum(gram(matrix_map(factors)), method)
    assert int(late.matvecs) > 13
    assert late.status.tolist() == [0, 0, 0]


@pytest.mark.once
@pytest.mark.parametrize("block_size", [1, 2])
@pytest.mark.parametrize("where", ["host", "program"])
def test_a_start_beyond_the_range_leaves_the_values_of_a_low_rank(where, block_size):
    """Its last vectors have products along what is there: they count, though nothing new is on the other side."""
    factor = diagonal(np.array([1.0, 2.0, 4.0]), 60, 50)
    method = lh.GolubKahan(which="largest", k=3, basis_size=12, block_size=block_size, max_matvecs=24)
    run = lambda factor: lh.spectrum(gram(matrix_map(factor)), method, throw=False)
    found = (jax.jit(run) if where == "program" else run)(factor)
    values = np.asarray(found.eigenvalues)[np.asarray(found.multiplicities) > 0]
    np.testing.assert_allclose(values, [1, 4, 16], rtol=1e-4)
    assert lh.Status(int(found.status)) is lh.Status.INVARIANT_SUBSPACE
    assert np.asarray(found.residual_norms)[:3].max() < 1e-3


@pytest.mark.once
@pytest.mark.parametrize("kind", ["wide", "tall", "symmetric"])
@pytest.mark.parametrize("where", ["host", "program"])
def test_density_of_an_iteration_is_that_of_its_start(kind, where):
    """Restarts and all: the same as by the recurrence alone, from the same vector; and no product is made."""
    sigma = jnp.linspace(0.2, 3, 40)
    matrix = diagonal(sigma, 40, 70)
    method = {"rtol": 1e-6, "k": 2, "basis_size": 12, "max_matvecs": 60}
    if kind == "symmetric":
        make, method = (lambda s: lh.symmetric_operator(lambda v: s * v, 40)), lh.Lanczos(which="both", **method)
    else:
        make = lambda s: matrix_map((matrix if kind == "wide" else matrix.T) * s[0] / sigma[0])
        method = lh.GolubKahan(which="largest", **method)
    key = jax.random.key(4)
    found = (jax.jit if where == "program" else lambda of: of)(lambda s: lh.spectrum(make(s), method, key=key))(sigma)
    assert int(found.matvecs) > 14
    density = lh.spectral_density(found, axis="log", limits=(0.03, 10.0))
    # The starts that NumPy draws, and JAX in a program.
    draw = TRACED if where == "program" else HOST
    start = np.asarray(draw.random(key, (1, 1, 40), sigma.dtype)[0, 0], np.float64)
    values = np.asarray(sigma, np.float64) ** (1 if kind == "symmetric" else 2)
    weights = start**2 / np.sum(start**2)
    size = 70 if kind == "wide" else 40
    np.testing.assert_allclose(density.mean.value, 40 / size * np.sum(weights * values), rtol=1e-5)
    np.testing.assert_allclose(density.mean_square.value, 40 / size * np.sum(weights * values**2), rtol=1e-5)
    below = 1 - 40 / size + 40 / size * np.sum(weights * (values <= np.asarray(density.edges)[:, None]), axis=1)
    middle, half = density.cumulative.value, density.cumulative.quadrature_error
    assert np.all(np.abs(below - middle) <= half + 1e-5)
    assert np.mean(half) < 0.1
    assert (density.probes, density.steps, int(density.matvecs), density.size) == (1, 12, 0, size)
    # Of a random direction v, known without another: 2 (mean of lambda^2 - mean^2) / (order + 2) of v^T H v.
    deviation = np.sqrt(2 * (np.sum(weights * values**2) - np.sum(weights * values) ** 2) / 42)
    np.testing.assert_allclose(density.mean.probe_error, 40 / size * deviation, rtol=1e-4)
