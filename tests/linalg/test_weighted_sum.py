"""Operators that come in parts, against their explicit sum."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import localhessian as lh
from localhessian.linalg import matrix_map

ROWS = (7, 7, 2)
"""Of the parts: the last one is ragged, and alone has no full rank."""
WEIGHTS = (7 / 16, 7 / 16, 2 / 16)


def parts():
    rng = np.random.default_rng(0)
    return [networks.normal(rng, rows, 5) for rows in ROWS]


def stacked():
    """[sqrt(w_1) R_1; ..] in float64."""
    return np.concatenate([w**0.5 * np.asarray(R, np.float64) for w, R in zip(WEIGHTS, parts(), strict=True)])


def own(R):
    return lh.symmetric_operator(lambda v: R.T @ (R @ v), 5)


@pytest.mark.parametrize(
    "kind", [matrix_map, lambda R: matrix_map(R).symmetric, own], ids=["maps", "gram", "no factor"]
)
def test_a_sum_is_the_sum_of_the_matrices(kind, tol):
    total, truth = lh.weighted_sum([kind(R) for R in parts()], WEIGHTS), stacked().T @ stacked()
    v = np.arange(1.0, 6)
    # Eight roundings in each of three parts, of sums of at most seven terms.
    atol = 10 * tol.product * np.abs(truth).max()
    np.testing.assert_allclose(total.to_dense(), truth, atol=atol)
    np.testing.assert_allclose(total.mv(jnp.asarray(v, total.dtype)), truth @ v, atol=15 * atol)
    np.testing.assert_allclose(jax.jit(lambda H: H.to_dense())(total), truth, atol=atol)
    prepared = total.prepare()
    np.testing.assert_allclose(prepared.to_dense(), truth, atol=atol)
    assert (total.factor is None) == (kind is own)


def test_its_factor_is_the_parts_on_each_other(tol):
    factor = lh.weighted_sum([matrix_map(R) for R in parts()], WEIGHTS).factor
    assert (factor.size, factor.out_size) == (5, 16)
    np.testing.assert_allclose(factor.to_dense(), stacked(), atol=tol.product * 4)
    np.testing.assert_allclose(factor.T.to_dense(), stacked().T, atol=tol.product * 4)
    u = np.linspace(-1, 1, 16)
    np.testing.assert_allclose(factor.rmv(jnp.asarray(u, factor.dtype)), stacked().T @ u, atol=tol.product * 40)
    sigma = np.linalg.svd(stacked(), compute_uv=False)
    for method in (lh.Dense(), lh.GolubKahan()):
        found = lh.spectrum(factor, method).singular_values
        np.testing.assert_allclose(found, sigma[::-1], rtol=100 * tol.product)


def test_the_curvature_of_all_data_from_its_batches(tol):
    """H_W is a mean over samples: batches of 4, 4 and 1 of 9, by their shares, are the whole."""
    chain = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z @ w)), lh.Block("b", lambda w, z: z @ w)])
    rng = np.random.default_rng(1)
    params = {"a": networks.normal(rng, 3, 4), "b": networks.normal(rng, 4, 2)}
    x, y = networks.normal(rng, 9, 3), networks.normal(rng, 9, 2)
    loss = lambda z, y: 0.5 * ((z - y) ** 2).sum(1)

    def hessian(start, stop, block, part):
        matching = lh.back_match(chain, params, x[start:stop], y[start:stop], loss)
        return lh.local_hessian(matching, block, part=part)

    for block, part in (("a", "gauss_newton"), ("b", "full")):
        whole = np.asarray(hessian(0, 9, block, part).to_dense(), np.float64)
        batches = [hessian(start, min(start + 4, 9), block, part) for start in (0, 4, 8)]
        total = lh.weighted_sum(batches, [4 / 9, 4 / 9, 1 / 9])
        np.testing.assert_allclose(total.to_dense(), whole, atol=10 * tol.product * np.abs(whole).max())
    top = lh.spectrum(total, lh.Lanczos(which="largest", k=1)).lambda_max
    np.testing.assert_allclose(top, np.linalg.eigvalsh(whole)[-1], rtol=1e-3)


def test_equal_parts_share_programs_and_other_weights_need_none(count_compilations):
    v = jnp.ones(5)
    lh.weighted_sum([matrix_map(R) for R in parts()[:1]], [1.0]).mv(v)
    with count_compilations() as again:
        lh.weighted_sum([matrix_map(R) for R in parts()[:1]], [0.3]).mv(v)
    assert again.names == []


def test_what_cannot_be_summed_is_named():
    one, other = matrix_map(jnp.ones((2, 3))), matrix_map(jnp.ones((2, 4)))
    for operators, weights, message in (
        ([], [], r"`operators` must be one at least, and `weights` a number for each, got 0 and 0\."),
        ([one], [1, 2], r"`operators` must be one at least, and `weights` a number for each, got 1 and 2\."),
        ([one, other], [1, 1], r"`operators\[1\]` has size 4, and the first 3"),
        ([one, one], [1, -1], r"`weights` must be finite and not negative, got -1\."),
    ):
        with pytest.raises(ValueError, match=message):
            lh.weighted_sum(operators, weights)


def test_parts_on_trust_are_tried_before_they_are_believed():
    """As each of them alone: a sum of products that are not linear has no spectrum."""
    total = lh.weighted_sum([lh.symmetric_operator(jnp.sin, 4)], [0.5])
    assert int(lh.spectrum(total, lh.Lanczos(), throw=False).status) == lh.Status.NOT_LINEAR
