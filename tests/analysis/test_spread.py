"""Reports over streams, and how figures differ from batch to batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from networks import cross_entropy, mlp

import localhessian as lh

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def case():
    return mlp(widths=(4, 6, 5, 3), n=10)[:5]


@pytest.fixture(scope="module")
def whole(case):
    return lh.analyze(*case, batches=5)


def in_batches(case):
    chain, params, x, y, loss = case
    return chain, params, lh.Stream([(x[a : a + 4], y[a : a + 4]) for a in (0, 4, 8)]), None, loss


def test_a_report_of_a_stream_has_the_figures_of_all_samples(case, whole, tol):
    report = lh.analyze(*in_batches(case))
    assert [row.key for row in report.rows] == [row.key for row in whole.rows]
    for mine, truth in zip(report.rows, whole.rows, strict=True):
        assert (mine.size, mine.samples, mine.rank, mine.status) == (
            truth.size,
            truth.samples,
            truth.rank,
            truth.status,
        )
        for name in ("lambda_max", "trace", "effective_rank"):
            np.testing.assert_allclose(getattr(mine, name), getattr(truth, name), rtol=10 * tol.eigenvalue)
        np.testing.assert_allclose(mine.kappa_plus, truth.kappa_plus, rtol=10 * tol.eigenvalue * truth.kappa_plus**0.5)
    assert report.meta["batch"] == 10
    other = lh.analyze(*case[:4], case[4], batch_size=4, wrt="params")
    assert [row.rank for row in other.rows] == [row.rank for row in whole.rows if row.wrt == "params"]
    # The same parts, by whatever way, are the same data; one batch is another, since batches may couple samples.
    assert report.meta["fingerprint"] == other.meta["fingerprint"] != whole.meta["fingerprint"]


def test_a_plan_tells_the_way_over_a_stream(case):
    rows = {(row.block, row.wrt): row for row in lh.plan(*in_batches(case)).rows}
    assert rows["layer0", "params"].route == "Structured"
    assert rows["layer0", "params"].reason.endswith("of order 5 or less, summed over batches")
    assert rows["head", "params"].route == "Dense"
    assert rows["layer1", "input"].samples == 10


def test_the_spread_is_students_over_the_batches(case, whole, tmp_path):
    chain, params, x, y, loss = case
    alone = [lh.analyze(chain, params, x[a : a + 2], y[a : a + 2], loss) for a in range(0, 10, 2)]
    for key in (("layer0", "params", "gauss_newton"), ("head", "input", "gauss_newton")):
        tops, kappas = ([getattr(one[key], name) for one in alone] for name in ("lambda_max", "kappa_plus"))
        for values, told, back in ((tops, "lambda_max", float), (np.log(kappas), "kappa_plus", np.exp)):
            found = whole.spread[key][told]
            truth = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
            np.testing.assert_allclose(found.mean, back(np.mean(values)), rtol=1e-6)
            np.testing.assert_allclose((found.low, found.high), (back(truth.low), back(truth.high)), rtol=1e-6)
            assert found.runs == 5
    assert "means over 5 batches" in str(whole.spread)
    frame = whole.spread.to_dataframe()
    assert set(frame.figure) >= {"kappa_plus", "trace", "effective_rank"}
    read = lh.Report.load(whole.save(tmp_path / "report"))
    assert str(read.spread) == str(whole.spread)
    assert lh.analyze(*in_batches(case), batches=2, blocks="head", wrt="params").spread.batches == 2


def test_what_has_no_spread_is_named(case, whole):
    damaged = dataclasses.replace(whole, meta={**whole.meta, "spread": {"batches": 5, "figures": [["one", 3]]}})
    with pytest.raises(ValueError, match="the report holds a damaged spread: analyze again"):
        _ = damaged.spread
    with pytest.raises(AttributeError, match=r"`lh\.analyze\(\.\.\., batches=8\)` tells the spread too"):
        _ = lh.analyze(*case, blocks="head", wrt="params").spread
    with pytest.raises(ValueError, match="`batches` = 4, and the stream has 3"):
        lh.analyze(*in_batches(case), batches=4, blocks="head", wrt="params")
    with pytest.raises(ValueError, match="`found` must be of several batches, got 1"):
        lh.spread([whole])
    with pytest.raises(KeyError, match="the spread has no entry"):
        whole.spread["tail", "params"]


def test_figures_that_batches_lack_are_left_out():
    """A network whose layer is dead for one batch: that has no condition number."""
    chain = lh.Chain([lh.Block("a", lambda w, z: jax.nn.relu(z @ w)), lh.Block("b", lambda w, z: z @ w)])
    params = {"a": jnp.eye(2), "b": jnp.ones((2, 3))}
    x = jnp.array([[1.0, 2.0], [2.0, 1.0], [1.0, 3.0], [3.0, 1.0], [-1.0, -2.0], [-2.0, -1.0]])
    found = lh.analyze(chain, params, x, jnp.arange(6) % 3, cross_entropy, batches=3, blocks="a", wrt="params").spread
    assert found["a", "params"]["kappa_plus"].runs == 2
    assert found["a", "params"]["rank"].runs == 3
