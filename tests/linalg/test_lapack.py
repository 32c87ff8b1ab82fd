"""Eigenvalues by LAPACK's own routines."""

import contextlib

import numpy as np
import pytest
import threadpoolctl

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


@pytest.mark.once
@pytest.mark.parametrize(("count", "threads"), [(3, 1), (1, 2)])
def test_matrices_that_wait_have_a_core_each_and_one_alone_has_all(count, threads, monkeypatch):
    """BLAS with several threads in each of several calls makes them wait for each other."""
    seen = []

    def roots(gram):
        pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
        seen.extend(pool["num_threads"] for pool in pools)
        return found(gram)

    found = _dense.roots
    monkeypatch.setattr(_dense, "roots", roots)
    monkeypatch.setattr(_threads, "cores", lambda: 2)
    matrices = np.random.default_rng(0).standard_normal((count, 4, 6)).astype(np.float32)
    with threadpoolctl.threadpool_limits(2, "blas"):
        sigma, _ = _dense._decompose_on_host(matrices, wide=True, vectors=0)
    np.testing.assert_allclose(sigma, np.linalg.svd(matrices.astype(np.float64), compute_uv=False)[:, ::-1])
    assert set(seen) == {threads}
