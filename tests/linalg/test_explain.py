"""What structure gives beside spectra: exact traces without a decomposition, and the explanation of a route."""

import networks
import numpy as np
import pytest

import localhessian as lh


@pytest.mark.parametrize("make", [networks.mlp, networks.normalized])
def test_traces_by_structure(tol, make):
    matching = lh.back_match(*make())
    for name in matching.chain.names[:1]:
        for wrt, samples in (("params", None), ("input", [0, 2])):
            operator = lh.local_hessian(matching, name, wrt, samples=samples)
            matrix = np.asarray(operator.to_dense(), np.float64)
            trace = lh.trace(operator, lh.Structured())
            norm = lh.frobenius_norm(operator, lh.Structured())
            mean = lh.range_mean(operator, lh.Structured())
            exact, squares = np.trace(matrix, axis1=-2, axis2=-1), np.sum(matrix**2, axis=(-2, -1))
            np.testing.assert_allclose(trace.value, exact, rtol=10 * tol.eigenvalue)
            np.testing.assert_allclose(norm.value, squares**0.5, rtol=10 * tol.eigenvalue)
            np.testing.assert_allclose(mean.value, squares / exact, rtol=10 * tol.eigenvalue)


def test_explain_tells_the_route_of_every_kind():
    matching = lh.back_match(*networks.transformer())
    text = str(lh.explain(lh.local_hessian(matching, "attention")))
    assert text.splitlines()[0] == "H_W of block `attention` (gauss-newton): order 48"
    assert "route   Dense" in text
    assert "no structure: they enter by more than one product" in text
    assert "cost    about" in text
    assert "block diagonal" in str(lh.explain(lh.local_hessian(matching, "embed")))
    iterative = lh.explain(lh.symmetric_operator(lambda v: 2 * v, 10_000))
    assert "route   Lanczos" in str(iterative)
    assert "too large to hold" in iterative.reason
