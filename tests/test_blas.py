import threading

import pytest
import threadpoolctl

from localhessian._blas import blas_threads

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
