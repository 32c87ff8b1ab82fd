"""Singular values inside compiled programs: on the CPU all digits of float32, and what other devices are given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localhessian.linalg.structure import _in_program, singular_values
from localhessian.linalg.structure._traced import _taken

pytestmark = pytest.mark.once

draw = np.random.default_rng(0)


def prescribed(m, p, count=3):
    """float32 matrices with singular values from 1 to 1e-5, and those that rounding to float32 made of them."""
    left, right = (np.linalg.qr(draw.standard_normal((count, size, size)))[0] for size in (m, p))
    k = min(m, p)
    matrices = (left[..., :k] * np.geomspace(1, 1e-5, k) @ right[..., :k].swapaxes(1, 2)).astype(np.float32)
    return matrices, np.linalg.svd(matrices.astype(np.float64), compute_uv=False)


MATRICES, TRUE = prescribed(6, 9)
WAYS = {
    "jit": jax.jit(singular_values),
    "eager": singular_values,
    "vmap": jax.vmap(singular_values),
    "vmap of a program": jax.jit(jax.vmap(jax.jit(singular_values))),
    "tall": jax.jit(lambda matrices: singular_values(jnp.swapaxes(matrices, -1, -2))),
    "scan": jax.jit(lambda matrices: jax.lax.scan(lambda _, one: (0, singular_values(one)), 0, matrices)[1]),
}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere there is no float64 beside float32")
@pytest.mark.parametrize("way", WAYS)
def test_small_values_have_the_digits_of_float32(way):
    # 1e-5 squared is known to eps of float64, a millionth of it; an SVD in float32 is off by a hundredth.
    np.testing.assert_allclose(WAYS[way](MATRICES), TRUE, rtol=3e-6)


def test_of_many_rows_each_block_of_the_gram_matrix_is_there():
    rows, true = prescribed(203, 210, 2)
    wide = rows.astype(np.float64)
    with jax.enable_x64(True):
        np.testing.assert_allclose(_in_program._gram(rows), wide @ wide.swapaxes(1, 2), atol=1e-14)
    np.testing.assert_allclose(jax.jit(singular_values)(rows), true, atol=1e-5)  # also where there is no float64


def test_without_the_routine_for_eigenvalues_alone_they_are_the_same(monkeypatch):
    monkeypatch.setattr(_in_program, "_has_eigenvalues_alone", lambda: False)
    # A shape of its own, so that nothing traced before is found again.
    np.testing.assert_allclose(jax.jit(singular_values)(MATRICES[:2]), TRUE[:2], rtol=3e-6)


@pytest.mark.parametrize("rows", [5, 20])
def test_rows_that_are_kronecker_products(rows):
    left, right = (draw.standard_normal((2, rows, size)).astype(np.float32) for size in (3, 4))
    explicit = (left[..., :, None] * right[..., None, :]).reshape(2, rows, 12).astype(np.float64)
    true = np.linalg.svd(explicit, compute_uv=False)
    for found in (jax.jit(singular_values)(left, right), jax.jit(jax.vmap(singular_values))(left, right)):
        np.testing.assert_allclose(found, true, rtol=1e-5, atol=1e-6)
    both = jax.vmap(singular_values, in_axes=(None, 0))(left[0], right)
    np.testing.assert_allclose(both[0], true[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_of_a_matrix_that_is_not_finite_alone_they_are_nan(dtype):
    matrices = MATRICES.astype(dtype)
    matrices[0, 2, 3], matrices[2, 5, 8] = np.inf, np.nan
    with jax.enable_x64(dtype == np.float64):
        found = jax.jit(singular_values)(matrices)
    np.testing.assert_allclose(found, np.where([[False], [True], [False]], TRUE, np.nan), rtol=3e-2)


def test_double_precision_is_not_squared():
    with jax.enable_x64(True):
        matrix = np.diag(np.geomspace(1, 1e-12, 4))
        np.testing.assert_allclose(jax.jit(singular_values)(matrix), np.diag(matrix), rtol=1e-10)


def test_derivatives_are_those_of_the_decomposition():
    matrix = MATRICES[0] + np.eye(6, 9, dtype=np.float32)
    least = lambda of: lambda matrix: of(matrix)[-1]
    ours = jax.grad(least(singular_values))(matrix)
    plain = jax.grad(least(lambda matrix: jnp.linalg.svd(matrix, compute_uv=False)))(matrix)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_programs_for_devices_hold_no_float64(platform):
    with jax.enable_x64(False):
        program = jax.jit(jax.vmap(singular_values))
        exported = jax.export.export(program, platforms=(platform,))(MATRICES)
    assert "f64" not in exported.mlir_module()
    assert "lapack" not in exported.mlir_module()


@pytest.mark.parametrize(
    ("index", "gathers"),
    [
        (np.arange(6).reshape(2, 3), False),
        (1 + np.arange(6).reshape(2, 3).T, False),
        (np.arange(8).reshape(2, 2, 2).transpose(1, 2, 0), False),
        (np.array([[0, 2], [1, 3]])[:, ::-1], True),
        (np.array([[3]]), False),
    ],
)
def test_places_in_another_order_of_axes_are_not_gathered(index, gathers):
    array = draw.standard_normal((2, 9)).astype(np.float32)
    np.testing.assert_array_equal(_taken(jnp.asarray(array), index), array[..., index])
    assert ("gather" in str(jax.make_jaxpr(lambda array: _taken(array, index))(array))) == gathers
