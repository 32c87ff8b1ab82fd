"""Decompositions inside programs: those of NumPy, however they are batched, and never waiting for each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localhessian._programs import eigh, one_by_one, qr, svd

pytestmark = pytest.mark.once

draw = np.random.default_rng(0)
SQUARE = draw.standard_normal((2, 3, 5, 5)).astype(np.float32)
SQUARE = SQUARE + SQUARE.swapaxes(-1, -2)
WAYS = {
    "batch": lambda function: function,
    "vmap": jax.vmap,
    "vmap of vmap": lambda function: jax.vmap(jax.vmap(function)),
}


@pytest.mark.parametrize("way", WAYS)
def test_as_numpy(way):
    """Signs of vectors are free, so products of the parts are compared."""

    def parts(a):
        (w, v), (left, sigma, right), (q, r) = eigh(a), svd(a), qr(a)
        products = (v * w[..., None, :]) @ jnp.swapaxes(v, -1, -2), (left * sigma[..., None, :]) @ right, q @ r
        return w, sigma, *(product - a for product in products)

    found = jax.jit(WAYS[way](parts))(SQUARE)
    wanted = np.linalg.eigvalsh(SQUARE), np.linalg.svd(SQUARE, compute_uv=False), *[np.zeros_like(SQUARE)] * 3
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_of_matrices_without_entries():
    for shape in [(0, 3, 3), (2, 0, 3)]:
        assert svd(jnp.zeros(shape))[1].shape == jnp.linalg.svd(jnp.zeros(shape), compute_uv=False).shape


def test_outside_of_programs_each_shape_compiles_once(count_compilations):
    once = jnp.asarray(SQUARE), jnp.asarray(SQUARE + 1)
    svd(once[0])
    with count_compilations() as seen:
        svd(once[1])
    assert seen.names == []


def test_lapack_meets_one_matrix_at_a_time():
    """A call for several hands them to threads that such calls occupy, and waits for ever where all are occupied."""
    program = jax.jit(jax.vmap(lambda a: (eigh(a)[0], svd(a)[1], qr(a)[1]))).lower(SQUARE).compile().as_text()
    calls = [line for line in program.splitlines() if "custom-call(" in line and "lapack" in line]
    assert len(calls) >= 3
    assert all("[3,5,5]" not in line and "[6,5,5]" not in line and "[2,3,5,5]" not in line for line in calls)


def test_many_at_once_do_not_wait_for_each_other():
    """Of as many batched calls of jaxlib, side by side, most runs never end on a machine of two cores."""
    large = jnp.asarray(draw.standard_normal((8, 40, 40)), jnp.float32)
    program = jax.jit(lambda a: sum(eigh(a + k)[0].sum() + svd(a - k)[1].sum() for k in range(8)))
    assert all(np.isfinite(program(large + i)) for i in range(5))


def test_derivatives_are_those_of_the_decomposition():
    gradient = jax.grad(lambda a: eigh(a)[0][..., -1].sum())(SQUARE)
    plain = jax.grad(lambda a: jnp.linalg.eigh(a)[0][..., -1].sum())(SQUARE)
    np.testing.assert_allclose(gradient, plain, atol=1e-5)
    double = one_by_one(lambda a: 2 * a)
    np.testing.assert_array_equal(jax.jacfwd(double)(SQUARE[0, 0, :1]), jax.jacfwd(lambda a: 2 * a)(SQUARE[0, 0, :1]))
