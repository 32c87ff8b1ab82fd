import threading

import jax.numpy as jnp
import networks
import numpy as np
import pytest
import threadpoolctl

import localhessian as lh
from localhessian import _blas
from localhessian._blas import blas_threads, threads_that_pay
from localhessian._tree import pytree
from localhessian.linalg.krylov import HOST

pytestmark = pytest.mark.once


def threads():
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}


def test_limits_of_several_at_once_leave_what_was():
    """The first ends while the second runs, which met its limit and must not leave it."""
    with threadpoolctl.threadpool_limits(2, "blas"):
        entered, ended = threading.Event(), threading.Event()

        def first():
            with blas_threads(1):
                entered.set()
                ended.wait(30)

        other = threading.Thread(target=first)
        other.start()
        assert entered.wait(30)
        with blas_threads(1):
            ended.set()
            other.join()
            assert threads() == {1}
        assert threads() == {2}
        with pytest.raises(ValueError, match="inside"), blas_threads(3), blas_threads(1):
            raise ValueError("inside")
        assert threads() == {2}


def test_short_calls_have_one_thread():
    with threadpoolctl.threadpool_limits(2, "blas"):
        with threads_that_pay(_blas.LONG):
            assert threads() == {1}
        with threads_that_pay(_blas.LONG + 1):
            assert threads() == {2}
        with blas_threads(1), threads_that_pay(_blas.LONG + 1):
            assert threads() == {1}


@pytree
class Inside(lh.SymmetricOperator):
    """A diagonal."""

    def product(self, v, /):
        return jnp.arange(1.0, 41.0, dtype=v.dtype) * v


@pytree
class OnHost(Inside):
    """As one of the user's own, which no program holds."""

    in_programs = False


@pytest.mark.parametrize(("long", "expected"), [(2**20, {1}), (39, {2})])
@pytest.mark.parametrize("is_density", [False, True])
def test_iterations_over_short_vectors_have_one_thread(long, expected, is_density, monkeypatch, key):
    """All of them where vectors are long, or where products are the user's own; and what was, afterwards."""
    seen, multiply = set(), type(HOST).multiply
    monkeypatch.setattr(type(HOST), "multiply", lambda *given: seen.update(threads()) or multiply(*given))
    monkeypatch.setattr(_blas, "LONG", long)
    inside, outside = (kind(size=40, dtype=np.dtype(np.float32)) for kind in (Inside, OnHost))

    def run(operator):
        seen.clear()
        if is_density:
            return lh.spectral_density(operator, key=key, probes=2, steps=5).mean.value
        return lh.spectrum(operator, lh.Lanczos(max_matvecs=12), key=key).lambda_max

    with threadpoolctl.threadpool_limits(2, "blas"):
        one = run(inside)
        assert seen == expected
        other = run(outside)
        assert seen == threads() == {2}
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_identities_are_checked_by_one_thread(monkeypatch):
    seen = set()
    norm = np.linalg.norm
    monkeypatch.setattr(np.linalg, "norm", lambda *given: seen.update(threads()) or norm(*given))
    case = networks.mlp()
    with threadpoolctl.threadpool_limits(2, "blas"):
        lh.check_identities(case.chain, case.params, case.x, case.y, case.loss, blocks=[case.chain.names[0]])
    assert seen == {1}
