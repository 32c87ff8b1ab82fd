"""What an analysis would take, and analyses that take no more than they may."""

import dataclasses
import re
import types

import jax
import networks
import numpy as np
import pytest

import localhessian as lh
from localhessian.analysis import _analyze, _route
from localhessian.analysis._route import FEW, Limits, Route, cheaper, within
from localhessian.analysis._survey import TOP
from localhessian.linalg import Cost, basis_bytes


@pytest.fixture(scope="module")
def case():
    return networks.mlp()


@pytest.fixture(scope="module")
def planned(case):
    return lh.plan(*case)


@pytest.mark.once
def test_the_route_of_every_row_is_the_one_that_is_taken(case, planned):
    report = lh.analyze(*case)
    taken = {row.key: row.method.split("(")[0] for row in report.rows}
    assert {(row.block, row.wrt, row.part): row.route for row in planned.rows} == taken
    for row in planned.rows:
        assert row.size == report[row.block, row.wrt].size
        assert row.samples == (0 if row.wrt == "params" else report[row.block, row.wrt].samples)


def test_nothing_is_decomposed(case, planned, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("decomposed")

    for kind in (lh.Structured, lh.Dense):
        for name in ("run", "decompose"):
            monkeypatch.setattr(kind, name, forbidden, raising=False)
    again = lh.plan(*case)
    assert [row.route for row in again.rows] == [row.route for row in planned.rows]


def test_sums_and_words(planned):
    np.testing.assert_allclose(planned.seconds, sum(row.seconds for row in planned.rows))
    assert planned.bytes == max(row.bytes for row in planned.rows)
    lines = str(planned).splitlines()
    assert re.fullmatch(r"about .* s and at most .* MiB, compilation apart", lines[-1])
    assert len(lines) == len(planned.rows) + 3
    assert list(planned.to_dataframe().columns[:6]) == ["block", "wrt", "part", "size", "samples", "route"]


def test_planning_tells_how_far_it_is(case):
    seen = []
    planned = lh.plan(*case, wrt="params", progress=lambda *told: seen.append(told))
    names = [f"{row.block} / params / gauss_newton" for row in planned.rows]
    assert seen == [*((i, len(names), name) for i, name in enumerate(names)), (len(names), len(names), "done")]


@pytest.mark.once
def test_a_method_that_is_asked_for_has_its_whole_budget(case):
    few, many = (lh.plan(*case, blocks="head", wrt="params", method=lh.GolubKahan(max_matvecs=n)) for n in (10, 10000))
    assert [row.route for row in few.rows] == ["GolubKahan"]
    # A thousand times the products; a product's time is measured anew, on a machine that does other things too.
    assert many.seconds > 20 * few.seconds


@pytest.mark.once
def test_what_does_not_fit_is_skipped_with_what_it_would_take(case):
    report = lh.analyze(*case, max_seconds=1e-9)
    assert {row.status for row in report.rows} == {"SKIPPED"}
    for row in report.rows:
        assert row.note.startswith("skipped: it would take about ")
        assert "raise `max_seconds` or `max_bytes`" in row.note
        assert row.size > 0
        assert np.isnan(row.kappa_plus)
    assert "skipped" in str(lh.plan(*case, max_seconds=1e-9)).splitlines()[-1]
    resumed, whole = lh.analyze(*case, resume=report), lh.analyze(*case)
    assert resumed.rows == whole.rows


def test_little_memory_takes_the_way_that_fits(case):
    """A search for structure holds some numbers for each variable and result, the largest eigenvalue two bases."""
    least = {row.key: 2.0 * 16 * 4 * (row.size + 3) for row in lh.analyze(*case, blocks="head").rows}
    report = lh.analyze(*case, blocks="head", wrt="params", max_bytes=16 * least["head", "params", "gauss_newton"])
    assert report.rows[0].status != "SKIPPED"
    (row,) = lh.analyze(*case, blocks="head", wrt="params", max_bytes=64).rows
    assert row.status == "SKIPPED"
    assert re.match(r"skipped: it would take about [\d.e-]+ MiB; looking for structure would take", row.note)


@pytest.mark.once
def test_no_row_takes_more_memory_than_it_may(case):
    for most in (2e3, 5e3, 2e4):
        rows = lh.plan(*case, part="full", max_bytes=most).rows
        assert all(row.bytes <= most for row in rows if row.route != "skipped")


@pytest.mark.once
def test_a_full_hessian_that_is_too_large_has_its_largest_eigenvalue_and_a_quadrature(case):
    """It has no factor."""
    which = {"blocks": "layer1", "wrt": "params", "part": "full"}
    (whole,) = lh.analyze(*case, **which).rows
    least = {"max_bytes": 70 * case.x.dtype.itemsize * whole.size}
    assert [row.route for row in lh.plan(*case, **which, **least).rows] == ["top + quadrature"]
    (row,) = lh.analyze(*case, **which, **least).rows
    assert row.status == whole.status == "INDEFINITE"
    assert row.note == f"{whole.note}; less than usual: raise `max_seconds` or `max_bytes` for more"
    # The method's tolerance; the trace by two random starts, within four of their standard errors.
    np.testing.assert_allclose(row.lambda_max, whole.lambda_max, rtol=3e-3)
    assert abs(row.trace - whole.trace) <= 4 * row.trace_error


def test_traced_parameters_are_refused(case):
    chain, params, *rest = case
    with pytest.raises(TypeError, match="`plan` runs on the host"):
        jax.jit(lambda params: lh.plan(chain, params, *rest).seconds)(params)


@pytest.mark.parametrize("name", ["max_seconds", "max_bytes"])
def test_limits_that_mean_nothing(case, name):
    for value, error, words in (
        (0, ValueError, "positive, got 0"),
        ("much", TypeError, "a number or None, got 'much'"),
    ):
        for function in (lh.plan, lh.analyze):
            with pytest.raises(error, match=f"`{name}` must be {words}"):
                function(*case, **{name: value})


@pytest.mark.once
def test_equal_blocks_without_structure_are_searched_once(monkeypatch):
    searched = []
    find = lh.Structured.find
    monkeypatch.setattr(lh.Structured, "find", lambda self, operator: searched.append(operator) or find(self, operator))
    names, keys = ("query", "key", "value"), jax.random.split(jax.random.key(0), 4)
    layer = {name: jax.random.normal(key, (3, 3)) for name, key in zip(names, keys, strict=False)}
    blocks = [lh.Block(f"layer{i}", networks.attention) for i in range(3)]
    blocks.append(lh.Block("head", lambda w, z: z.mean(1) @ w))
    params = {f"layer{i}": layer for i in range(3)} | {"head": jax.numpy.ones((3, 2))}
    x, y = jax.random.normal(keys[3], (2, 4, 3)), np.array([0, 1])
    planned = lh.plan(lh.Chain(blocks), params, x, y, networks.cross_entropy, blocks=["layer0", "layer1", "layer2"])
    assert len(searched) == 2  # by the parameters, and by the input
    for wrt in ("params", "input"):
        rows = [row for row in planned.rows if row.wrt == wrt]
        assert len({(row.route, row.reason) for row in rows}) == 1
        assert [row.block for row in rows] == ["layer0", "layer1", "layer2"]


def test_dear_rows_come_last_and_give_way_first():
    cheap, dear, unknown = (
        Route((name, "params", "gauss_newton"), None, lh.Dense(), "", Cost(seconds, 1.0))
        for name, seconds in (("cheap", 1.0), ("dear", 30.0), ("unknown", float("nan")))
    )
    assert within([unknown, dear, cheap], Limits()) == [cheap, dear, unknown]


def test_the_way_that_fits_is_the_one_that_tells_most(monkeypatch):
    """A second for each product: 28 of them, 12, or what the whole spectrum takes where that is less."""
    H = lh.symmetric_operator(lambda v: v, 5)
    monkeypatch.setattr(_route, "of_iteration", lambda operator, method, steps: Cost(steps, 0.0))
    whole = Route(("a", "params", "gauss_newton"), H, lh.Dense(), "", Cost(1000.0, 1.0))
    for seconds, way, takes in (
        (60, "top + quadrature", 28),
        (20, "few products", 12),
        (5, "skipped", 12),
    ):
        found = cheaper(whole, Limits(seconds))
        assert (found.words, found.cost.seconds) == (way, takes)
        assert cheaper(found, Limits(1)).cost.seconds == 12
    quick = dataclasses.replace(whole, cost=Cost(7.0, 1.0))
    assert cheaper(quick, Limits(5)).cost.seconds == 7


@pytest.mark.once
@pytest.mark.parametrize(
    ("products", "status", "words"),
    [(8, "CONVERGED", "lambda_max"), (2, "BUDGET_SPENT", "a lower bound of lambda_max")],
)
def test_a_few_products_tell_the_largest_eigenvalue_and_the_trace(products, status, words, monkeypatch):
    monkeypatch.setitem(FEW, TOP, dataclasses.replace(TOP, max_matvecs=products, min_matvecs=0))
    case, which = networks.transformer(seed=1), {"blocks": "attention", "wrt": "params"}
    (whole,) = lh.analyze(*case, **which).rows
    H = lh.local_hessian(lh.back_match(*case), "attention")
    few = {"max_bytes": 1.01 * basis_bytes(H, FEW[TOP])}
    assert [row.route for row in lh.plan(*case, **which, **few).rows] == ["few products"]
    report = lh.analyze(*case, **which, **few)
    (row,) = report.rows
    assert row.status == status
    assert row.note.startswith(f"a few products: {words}, and an estimate of the trace; raise `max_seconds`")
    assert "max_matvecs" not in row.note
    assert 0.5 * whole.lambda_max < row.lambda_max <= whole.lambda_max * (1 + 1e-5)
    if status == "CONVERGED":
        # The method's tolerance is of a singular value; one of them is as near.
        assert np.min(np.abs(np.sqrt(lh.spectrum(H).eigenvalues / row.lambda_max) - 1)) <= 3e-3
    # The trace by four random vectors, within four of their standard errors.
    assert abs(row.trace - whole.trace) <= 4 * row.trace_error
    assert np.isnan(row.kappa_plus)
    assert row.matvecs <= products + 6  # the trace's four, the start and the residual
    assert "attention" in str(report)
    assert report.summary


@pytest.mark.once
def test_rows_behind_the_clock_give_way(case, monkeypatch):
    """Each row takes a hundred times as long as all of them are predicted to take."""
    budget = 10 * lh.plan(*case).seconds
    now = [0.0]
    taken = _analyze.taken

    def late(*args):
        now[0] += 10 * budget
        return taken(*args)

    monkeypatch.setattr(_analyze, "taken", late)
    monkeypatch.setattr(_analyze, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    report = lh.analyze(*case, max_seconds=budget)
    assert [row.status == "SKIPPED" for row in report.rows].count(False) == 1


@pytest.mark.once
def test_more_is_told_of_rows_that_limits_cut_short():
    case, which = networks.transformer(), {"blocks": ["attention", "head"], "wrt": "params"}
    whole = lh.analyze(*case, **which)
    H = lh.local_hessian(lh.back_match(*case), "attention")
    few, more = (1.01 * basis_bytes(H, method) for method in (FEW[TOP], TOP))
    short = lh.analyze(*case, **which, max_bytes=few)
    again = lh.analyze(*case, **which, max_bytes=few, resume=short)
    assert again.rows == short.rows
    row = lh.analyze(*case, **which, max_bytes=more, resume=short)["attention", "params"]
    assert "spectral_density" in row.method
    assert row.note.endswith("less than usual: raise `max_seconds` or `max_bytes` for more")
    assert lh.analyze(*case, **which, resume=short).rows == whole.rows
