"""Eigenvalues by LAPACK's own routines."""

import contextlib

import numpy as np
import pytest
import threadpoolctl

from localhessian import _blas
from localhessian._blas import blas_threads_now
from localhessian.linalg import _dense
from localhessian.linalg.structure import _lapack, _threads

pytestmark = pytest.mark.once


def _matrices(n):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
    graded = np.logspace(-30, 0, n)
    low = np.zeros(n)
    low[: n // 8] = 1.0
    for values in (np.sort(rng.standard_normal(n)), graded, low, np.ones(n), np.zeros(n), 1e70 * graded, 1e-80 * low):
        yield np.sort(values), (basis * values) @ basis.T


@pytest.mark.parametrize("n", [1, 5, 64, 130])
def test_prescribed_spectra_from_either_order_of_memory(n):
    for values, matrix in _matrices(n):
        for order in "CF":
            upper = np.array(np.triu(matrix), order=order) + np.tril(np.full((n, n), np.nan), -1)
            upper = np.array(upper, order=order)
            found = _lapack.eigenvalues(upper)
            # Backward stable: some n eps of the largest.
            np.testing.assert_allclose(found, values, rtol=0, atol=n * 4e-16 * np.abs(values).max())
    stack = np.stack([matrix for _, matrix in _matrices(n)])
    truth = np.stack([values for values, _ in _matrices(n)])
    scale = np.abs(truth).max(-1, keepdims=True)
    assert np.all(np.abs(_lapack.eigenvalues(stack.copy()) - truth) <= n * 4e-16 * scale)


def test_another_signature_leaves_it_to_numpy(monkeypatch):
    assert _lapack._routine("dsterf", _lapack._ITERATE) is not None
    assert _lapack._routine("dsterf", ("long *", *_lapack._ITERATE[1:])) is None
    matrix = np.diag(np.arange(70.0))
    monkeypatch.setattr(_lapack, "_routine", lambda *_: None)
    np.testing.assert_allclose(_lapack.eigenvalues(matrix), np.arange(70.0), atol=1e-13)


def test_what_is_not_finite_is_an_error_or_told():
    found = np.full(70, np.nan)
    with contextlib.suppress(np.linalg.LinAlgError):
        found = _lapack.eigenvalues(np.full((70, 70), np.nan))
    assert np.all(np.isnan(found))


@pytest.mark.parametrize(("count", "long", "expected"), [(3, 0, {1}), (1, 0, {2}), (1, 2**20, {1})])
def test_matrices_that_wait_have_a_core_each_and_a_large_one_alone_has_all(count, long, expected, monkeypatch):
    """BLAS with several threads in each of several calls makes them wait for each other; a reduction has one always."""
    of_gram, of_reduction = set(), set()
    gram, one = _dense._float64_gram, _lapack._one
    monkeypatch.setattr(_dense, "_float64_gram", lambda *given: of_gram.add(blas_threads_now()) or gram(*given))
    monkeypatch.setattr(_lapack, "_one", lambda *given: of_reduction.add(blas_threads_now()) or one(*given))
    monkeypatch.setattr(_threads, "cores", lambda: 2)
    monkeypatch.setattr(_blas, "LONG", long)
    matrices = np.random.default_rng(0).standard_normal((count, 64, 80)).astype(np.float32)
    with threadpoolctl.threadpool_limits(2, "blas"):
        sigma, _ = _dense._decompose_on_host(matrices, wide=True, vectors=0)
        assert blas_threads_now() == 2
    truth = np.linalg.svd(matrices.astype(np.float64), compute_uv=False)[:, ::-1]
    np.testing.assert_allclose(sigma, truth, rtol=1e-9)  # the smallest is 1e-2 of the largest, its square 1e-4
    assert (of_gram, of_reduction) == (expected, {1})


@pytest.mark.parametrize("vectors", [0, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_decompositions_of_small_matrices_have_one_thread(vectors, dtype, monkeypatch):
    seen = set()
    svd, qr = np.linalg.svd, np.linalg.qr
    monkeypatch.setattr(np.linalg, "svd", lambda *given, **how: seen.add(blas_threads_now()) or svd(*given, **how))
    monkeypatch.setattr(np.linalg, "qr", lambda *given, **how: seen.add(blas_threads_now()) or qr(*given, **how))
    matrices = np.random.default_rng(0).standard_normal((1, 5, 8)).astype(dtype)
    with threadpoolctl.threadpool_limits(2, "blas"):
        sigma, right = _dense._decompose_on_host(matrices, wide=True, vectors=vectors)
    np.testing.assert_allclose(sigma, svd(matrices, compute_uv=False)[:, ::-1], rtol=1e-5)
    assert (right is None) is (vectors == 0)
    assert seen == (set() if dtype == np.float32 and not vectors else {1})
