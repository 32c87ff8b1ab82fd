"""The claims about training: their small versions, and their statistics against independent truths."""

import networks
import numpy as np
import pandas as pd
import pytest
import scipy.stats

import localhessian as lh
from localhessian.lab import digits
from localhessian.lab._reproduce import reproduce
from localhessian.lab.claims import CLAIMS, Setting, Verdict
from localhessian.lab.claims._conditioning import DECIDING, FIGURES, by_network, correlation
from localhessian.lab.claims._correlation import rank_correlation
from localhessian.lab.claims._scale_amended import TOLERANCE, by_formula
from localhessian.lab.claims._studied import consecutive

pytestmark = pytest.mark.once

DIGITS = digits().take(300, 150)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The data of the small version of a claim, by the command's own path."""

    def run(name):
        claim = CLAIMS[name]
        setting = Setting("small", tuple(range(claim.seeds["small"])), DIGITS)
        return reproduce(claim, setting, tmp_path_factory.mktemp(name))

    return run


@pytest.mark.parametrize("ties", [False, True])
def test_the_rank_correlation_is_that_of_spearman(ties):
    random = np.random.default_rng(0)
    one, two = random.normal(size=(2, 40))
    two = two + one
    if ties:
        one, two = one.round(), two.round()
    found = rank_correlation(one, two, np.arange(40))
    truth = scipy.stats.spearmanr(one, two)
    np.testing.assert_allclose(found.value, truth.statistic, rtol=1e-12)
    # The interval of Fisher's transformation, and that of the bootstrap: alike to a tenth at 40 points.
    fisher = np.tanh(np.arctanh(found.value) + np.array([-1.96, 1.96]) * np.sqrt((1 + found.value**2 / 2) / 37))
    np.testing.assert_allclose(found[1:3], fisher, atol=0.12)
    # Members of a group come and go together: copies of the same points narrow nothing.
    copied = rank_correlation(np.tile(one, 3), np.tile(two, 3), np.tile(np.arange(40), 3))
    np.testing.assert_allclose(copied[:3], found[:3], atol=0.05)


def test_ranks_within_strata_do_not_see_what_strata_differ_by():
    """Within each stratum the order is reversed, between them it is not."""
    strata = np.repeat(np.arange(3), 10)
    one = np.tile(np.arange(10.0), 3) + 100 * strata
    two = -np.tile(np.arange(10.0), 3) + 100 * strata
    assert rank_correlation(one, two, np.arange(30), strata)[:3] == pytest.approx((-1, -1, -1))
    assert rank_correlation(one, two, np.arange(30)).value > 0.5
    assert np.isnan(rank_correlation(np.ones(9), np.arange(9.0), np.arange(9)).value)


def test_conditioning_and_training(small):
    """A dozen networks: each trains at a rate inside the grid; the correlation is that of their means."""
    data, judgement = small("conditioning")
    networks = by_network(data, "start")
    assert len(networks) == 12
    assert set(data["at"]) == {"start", "end"}
    assert np.isfinite(networks.to_numpy()[:, -5:].astype(float)).all()
    assert (data.loss < np.log(10)).all()  # of a guess
    assert not data.at_edge.any()
    for column in FIGURES:
        truth = scipy.stats.spearmanr(networks[column], networks.loss).statistic
        np.testing.assert_allclose(correlation(data, column).value, truth, rtol=1e-9)
    above = sum(correlation(data, column).low > 0 for column in DECIDING)
    assert judgement.verdict is (Verdict.FAILS, Verdict.WITH_LIMITS, Verdict.HOLDS)[above]
    ordered = data.assign(**dict.fromkeys(DECIDING, np.log10(data.loss)))
    assert CLAIMS["conditioning"].verdict(ordered).verdict is Verdict.HOLDS
    assert CLAIMS["conditioning"].verdict(ordered.assign(weights_q05=1.0)).verdict is Verdict.WITH_LIMITS


def test_scale_amended_sgd_is_its_formula_and_its_gain_is_told(small):
    """Whether it wins on a tiny network is not asserted; that its update is the formula, and that the gain is told."""
    data, judgement = small("scale-amended")
    assert (data.error < TOLERANCE).all()
    ours = data[data.algorithm == "scale-amended"].iloc[0]
    base = data[data.algorithm == "momentum"].iloc[0]
    np.testing.assert_allclose(ours.gain, ours.accuracy - base.accuracy, atol=1e-5)
    assert ours.gain_low < ours.gain < ours.gain_high
    assert f"{100 * ours.gain:+.1f} [{100 * ours.gain_low:+.1f}, {100 * ours.gain_high:+.1f}]" in judgement.reason
    claim = CLAIMS["scale-amended"]
    assert claim.verdict(data.assign(gain_low=0.01)).verdict is Verdict.HOLDS
    assert claim.verdict(data.assign(gain_low=-0.01)).verdict is Verdict.FAILS
    assert claim.verdict(data.assign(gain_low=0.01, error=1e-3)).verdict is Verdict.FAILS
    two = pd.concat([data, data.assign(network="other", gain_low=-0.01)])
    assert claim.verdict(two.assign(gain_low=np.where(two.network == "other", -1, 1))).verdict is Verdict.WITH_LIMITS


def test_the_formula_of_the_claim_is_that_of_dense_hessians(tol):
    """The few lines that the claim compares with, from the mean eigenvalue of every dense local Hessian."""
    case = networks.mlp()
    matching = lh.back_match(case.chain, case.params, case.x, case.y, case.loss)
    names, means = case.chain.names, {"params": [], "input": []}
    for name in names:
        for wrt, found in means.items():
            dense = np.asarray(lh.local_hessian(matching, name, wrt).to_dense(), np.float64)
            found.append(np.trace(dense) / len(dense))
    logs = [-np.log(means["params"][b]) - np.sum(np.log(means["input"][b + 1 :])) for b in range(len(names))]
    counts = [sum(leaf.size for leaf in case.params[name].values()) for name in names]
    logs = np.array(logs) - np.dot(counts, logs) / np.sum(counts)
    found = by_formula(names, matching.gradients, lh.local_scalars(matching))
    for b, name in enumerate(names):
        for ours, leaf in zip(found[name], matching.gradients[name].values(), strict=True):
            np.testing.assert_allclose(ours, np.exp(logs[b]) * np.asarray(leaf), rtol=1e3 * tol.eigenvalue)


def test_back_matching_solvers_train_a_deep_sigmoid_network(small):
    """60 steps of six layers: SGD stays near chance, and the interval of back-matching lies above its own."""
    data, judgement = small("solvers")
    assert judgement.verdict is not Verdict.FAILS
    at = data.set_index(["budget", "algorithm"])
    assert at.accuracy["steps", "momentum"] < 1.5 * data.chance[0]
    assert at.accuracy_low["steps", "back-matching"] > at.accuracy_high["steps", "momentum"]
    assert at.steps["time", "momentum"] >= at.steps["steps", "momentum"] == 60
    claim = CLAIMS["solvers"]
    better = data.assign(accuracy_high=np.where((data.budget == "time") & (data.algorithm == "adam"), 1.0, 0.2))
    assert claim.verdict(better.assign(accuracy_low=0.3)).verdict is Verdict.WITH_LIMITS
    assert claim.verdict(data.assign(accuracy_low=0.3, accuracy_high=0.2)).verdict is Verdict.HOLDS
    assert claim.verdict(data.assign(accuracy=0.9)).verdict is Verdict.FAILS
    assert claim.verdict(data.assign(accuracy_low=0.0)).verdict is Verdict.FAILS


def test_comparisons_take_as_many_seeds_in_a_row_as_an_interval_wants():
    assert consecutive((4, 2, 3, 5, 6)) == "2 to 6"
    for name in ("scale-amended", "solvers"):
        for seeds in ((7, 8), (0, 1, 2, 3, 5), (1,)):
            got = ", ".join(map(str, seeds))
            with pytest.raises(ValueError, match=f"must be at least 5 consecutive numbers, got {got}: .* intervals"):
                CLAIMS[name].points(Setting("small", seeds, DIGITS))
    with pytest.raises(ValueError, match="Take 7, 8, 9, 10, 11"):
        consecutive((7, 8))
