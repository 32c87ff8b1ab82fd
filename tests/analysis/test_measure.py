"""The figures as arrays: under transformations, against dense float64 arithmetic and against `analyze`."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import localhessian as lh
from localhessian._programs import equations
from localhessian.analysis import _survey as survey
from localhessian.analysis._figures import SEVERITY, _worst

pytestmark = pytest.mark.once

SCALES = jnp.array([1.0, 0.3, 3.0, 0.0, jnp.nan])
SHARED = ("rank", "lambda_max", "lambda_min_nonzero", "kappa_plus", "kappa_lower", "kappa_upper", "kappa_q05", "trace")


def scaled(scale):
    case = networks.mlp(widths=(3, 4, 3), n=5)
    return case._replace(params={**case.params, "layer0": jax.tree.map(lambda w: scale * w, case.params["layer0"])})


@functools.cache
def of_scales():
    """Five networks in one program: one has weights of zero, so that H_z of its first block vanishes, one has NaN."""
    return jax.jit(jax.vmap(lambda scale: lh.measure(*scaled(scale))))(SCALES)


def truth(scale, block, wrt):
    """(lambda_max, kappa_plus, rank, trace, stable rank): medians over samples, by float64 SVDs of dense Jacobians."""
    matching = lh.back_match(*scaled(scale))
    samples = range(matching.samples) if wrt == "input" else [None]
    told = []
    for sample in samples:
        factor = np.asarray(lh.local_hessian(matching, block, wrt, samples=sample).factor.to_dense(), np.float64)
        values = np.linalg.svd(factor, compute_uv=False) ** 2
        above = values[values > (100 * float(jnp.finfo(matching.objective.dtype).eps)) ** 2 * values[0]]
        stable = (values**2).sum() / values[0] ** 2
        told.append((values[0], above[0] / above[-1], len(above), values.sum(), stable))
    return np.median(told, axis=0)


@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize(("block", "wrt"), [(b, w) for b in ("layer0", "head") for w in ("params", "input")])
def test_one_program_for_many_networks_against_dense_float64_arithmetic(i, block, wrt):
    told = jax.tree.map(lambda array: array[i], of_scales()[block, wrt])
    top, kappa, rank, trace, stable = truth(SCALES[i], block, wrt)
    eps = float(jnp.finfo(told.lambda_max.dtype).eps)
    np.testing.assert_allclose([told.lambda_max, told.trace, told.stable_rank], [top, trace, stable], rtol=100 * eps)
    assert told.rank == rank
    # A singular value is off by some eps of the largest, so kappa by that times its root.
    np.testing.assert_allclose(told.kappa_plus, kappa, rtol=100 * eps * np.sqrt(kappa))
    assert told.kappa_lower <= kappa * (1 + 10 * eps)
    assert told.kappa_upper >= kappa * (1 - 10 * eps)
    assert told.status == 0
    assert told.complete


def test_what_vanishes_has_a_status_of_its_own():
    told = jax.tree.map(lambda array: array[3], of_scales()["layer0", "input"])
    assert int(told.status) == lh.Status.ZERO
    assert (int(told.valued), float(told.rank), float(told.lambda_max)) == (0, 0, 0)
    assert np.isnan(told.kappa_plus)


def test_no_figure_is_missing_behind_a_good_status():
    for array in (of_scales().figures, lh.measure(*networks.mlp()).figures):
        known = np.asarray(array.status) == 0
        assert not np.isnan(np.asarray(array.kappa_plus)[known]).any()
        assert not np.isnan(np.asarray(array.trace)[known & np.asarray(array.complete)]).any()


@pytest.mark.parametrize("make", [networks.mlp, networks.normalized, networks.transformer])
def test_on_numbers_the_figures_are_those_of_analyze(make):
    told, report = lh.measure(*make()), lh.analyze(*make())
    rows = [row for row in report.rows if row.has_figures]
    assert [row.key for row in rows] == [entry.key for entry in told.entries]
    for row, entry in zip(rows, told.entries, strict=True):
        assert (row.size, row.samples, row.coupled, row.method) == (
            entry.size,
            entry.samples,
            entry.coupled,
            entry.method,
        )
        for name in SHARED:
            np.testing.assert_array_equal(getattr(told[entry.key], name), getattr(row, name))
        assert lh.Status(int(told[entry.key].status)).name == row.status


def test_samples_are_chosen_under_tracing_too():
    case = networks.mlp(widths=(3, 4, 3), n=5)
    of = lambda p: lh.measure(case.chain, p, *case[2:], blocks="layer0", wrt="input", samples=[3, -1])
    traced, told = jax.jit(of)(case.params)["layer0", "input"], of(case.params)["layer0", "input"]
    np.testing.assert_allclose(traced.kappa_plus, told.kappa_plus, rtol=1e-4)
    with pytest.raises(ValueError, match="known when the program is made"):
        jax.jit(lambda i: lh.measure(*case, blocks="layer0", wrt="input", samples=i).figures)(jnp.array([1]))


def test_a_coupled_block_is_one_matrix_under_tracing_too():
    case = networks.normalized()
    traced = jax.jit(lambda p: lh.measure(case.chain, p, *case[2:], blocks="norm"))(case.params)
    whole = lh.measure(*case, blocks="norm")
    assert [(e.coupled, e.size, e.samples) for e in traced.entries] == [(True, 10, 6), (True, 30, 6)]
    for wrt in ("params", "input"):
        assert traced["norm", wrt].rank == whole["norm", wrt].rank
        assert traced["norm", wrt].status == whole["norm", wrt].status
        # kappa 2e9 hangs on a singular value of 2e-5 sigma_max, which float32 knows to a hundredth.
        interval = traced["norm", wrt].kappa_lower, traced["norm", wrt].kappa_upper
        assert interval[0] <= whole["norm", wrt].kappa_plus <= interval[1]


@pytest.mark.full
def test_a_large_matrix_is_surveyed_and_says_so(monkeypatch):
    monkeypatch.setattr(survey, "TRACED_OPERATIONS", 10.0)
    twice = lh.Block("twice", lambda w, z: jnp.tanh(jnp.tanh(z @ w) @ w))  # nothing of it splits
    chain = lh.Chain([twice, lh.Block("head", lambda w, z: z @ w)])
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"twice": jax.random.normal(keys[0], (8, 8)) / 3, "head": jax.random.normal(keys[1], (8, 3)) / 3}
    x, y, loss = jax.random.normal(keys[2], (20, 8)), jnp.zeros((20, 3)), lambda z, y: ((z - y) ** 2).sum(1) / 2
    of = lambda params, key: lh.measure(chain, params, x, y, loss, blocks="twice", wrt="params", key=key)
    in_program = jax.jit(of)
    told, whole = in_program(params, keys[0]), of(params, keys[0])
    surveyed, exact = told["twice", "params"], whole["twice", "params"]
    assert lh.Status(int(surveyed.status)) is lh.Status.BUDGET_SPENT
    assert "spectral_density" in told.entries[0].method
    assert np.isnan(surveyed.kappa_plus)
    assert not surveyed.complete
    assert 1 <= surveyed.kappa_lower <= exact.kappa_plus
    assert surveyed.kappa_upper == np.inf
    np.testing.assert_allclose(
        surveyed.lambda_max, exact.lambda_max, rtol=6e-3
    )  # of the square of what is known to 3e-3
    others = [in_program(params, key)["twice", "params"] for key in jax.random.split(keys[1], 40)]
    apart = np.asarray([abs(one.trace - exact.trace) / one.trace_error for one in others])
    assert apart.max() < 5
    assert np.mean(apart < 2) > 0.8  # 0.94 of 600 keys


@pytest.mark.parametrize("wrt", [pytest.param("params", marks=pytest.mark.full), "input"])
def test_iterations_over_equal_blocks_are_one_in_a_program(monkeypatch, wrt, tol):
    """Each block's figures are its own all the same; of the top to what its residual tells, of the rest in error."""
    monkeypatch.setattr(survey, "TRACED_OPERATIONS", 10.0)
    twice = lambda w, z: jnp.tanh(jnp.tanh(z @ w) @ w)  # nothing of it splits
    names = ("one", "two", "three")
    chain = lh.Chain([*(lh.Block(name, twice) for name in names), lh.Block("head", lambda w, z: z @ w)])
    keys = jax.random.split(jax.random.key(0), 5)
    params = {name: (i + 1) * jax.random.normal(keys[i], (8, 8)) / 3 for i, name in enumerate(names)}
    params["head"] = jax.random.normal(keys[3], (8, 3)) / 3
    x, y, loss = jax.random.normal(keys[4], (20, 8)), jnp.zeros((20, 3)), lambda z, y: ((z - y) ** 2).sum(1) / 2

    def of(params, x, blocks=names):
        return lh.measure(chain, params, x, y, loss, blocks=blocks, wrt=wrt, samples_per_block=3)

    told, whole = jax.jit(of)(params, x), of(params, x)
    for name in names:
        surveyed, exact = told[name, wrt], whole[name, wrt]
        np.testing.assert_allclose(surveyed.lambda_max, exact.lambda_max, rtol=6e-3)
        assert 1 <= surveyed.kappa_lower <= exact.kappa_plus * (1 + 1e-4)
        # Of H_z, of order 8, the run sees all: what is left is rounding, two of float32 for each eigenvalue.
        assert abs(surveyed.trace - exact.trace) < 5 * surveyed.trace_error + min(tol.eigenvalue, 2e-6) * exact.trace

    def count(blocks, kind):
        found = equations(jax.make_jaxpr(lambda *given: of(*given, blocks))(params, x))
        return sum(equation.primitive.name == kind for equation in found)

    # Products, decompositions and figures of all are those of one.
    assert count(names, "dot_general") < 1.2 * count("two", "dot_general")
    assert count(names, "svd") == count("two", "svd") > 0


def test_programs_hardly_grow_with_layers_and_every_figure_is_in_its_place():
    """Layers that are alike are one in a program, and spectra of any number of values share that of their figures."""

    def of(widths):
        chain, params, *data = networks.mlp(widths=widths, n=5)
        return lambda scale: lh.measure(chain, jax.tree.map(lambda w: scale * w, params), *data)

    count = lambda depth: sum(1 for _ in equations(jax.make_jaxpr(of((4,) * (depth + 1) + (3,)))(1.0)))
    assert count(5) < 1.3 * count(2)
    network = of((4, 4, 4, 3))
    told, exact = jax.jit(network)(1.0), network(1.0)
    assert [entry.key for entry in told.entries] == [entry.key for entry in exact.entries]
    for name in SHARED:
        one, other = (getattr(found.figures, name) for found in (told, exact))
        bound = name in ("kappa_lower", "kappa_upper")  # wider in float32
        # A small singular value is off by some eps of the largest, of condition numbers below 1e4.
        np.testing.assert_allclose(one, other, rtol=0.1 if bound else 2e-3, err_msg=name)


def test_a_spent_budget_is_told_by_the_status():
    case = networks.mlp(widths=(6, 12, 5), n=30)
    method = lh.GolubKahan(max_matvecs=8, k=1)
    run = lambda p: lh.measure(case.chain, p, *case[2:], blocks="layer0", wrt="params", method=method)
    whole = lambda p: lh.measure(case.chain, p, *case[2:], blocks="layer0", wrt="params")
    told, exact = (run_(case.params)["layer0", "params"] for run_ in (jax.jit(run), whole))
    assert lh.Status(int(told.status)) is lh.Status.BUDGET_SPENT
    assert 1 <= told.kappa_lower <= exact.kappa_plus
    assert told.kappa_upper == np.inf


def test_numbers_that_are_not_finite_poison_their_network_alone():
    statuses = np.asarray(of_scales().figures.status)
    assert (statuses[4] == lh.Status.NON_FINITE).all()
    assert (statuses[:3] == lh.Status.CONVERGED).all()


def test_tables():
    frame, dataset = of_scales().to_dataframe(), of_scales().to_xarray()
    assert list(frame.columns[:4]) == ["axis_0", "block", "wrt", "part"]
    assert len(frame) == 5 * 4
    assert dataset.kappa_plus.dims == ("axis_0", "block", "wrt")
    for _, row in frame.iterrows():
        at = {"axis_0": row.axis_0, "block": list(dataset.block.values).index(row.block)}
        at |= {"wrt": list(dataset.wrt.values).index(row.wrt)}
        np.testing.assert_array_equal(dataset.kappa_plus[at], row.kappa_plus)
    assert dataset.status.attrs["flag_meanings"].split()[int(lh.Status.ZERO)] == "ZERO"
    assert dataset.coords["size"].sel(block="layer0", wrt="params") == 16


def test_every_status_has_its_place_among_the_worst():
    assert sorted(SEVERITY) == list(lh.Status)
    assert SEVERITY[-1] is lh.Status.CONVERGED
    codes, some = np.array([lh.Status.ZERO, lh.Status.FAILED, lh.Status.CONVERGED]), np.array([True, False, True])
    assert _worst(np, codes, some) == lh.Status.ZERO
    assert _worst(np, codes, np.ones(3, bool)) == lh.Status.FAILED


def test_what_does_not_exist_leaves_a_gap():
    dataset = lh.measure(*networks.transformer()).to_xarray()
    assert np.isnan(dataset.kappa_plus.sel(block="embed", wrt="input"))
    assert dataset.status.sel(block="embed", wrt="input") == -1
    with pytest.raises(ValueError, match="nothing of what `blocks` and `wrt` ask for exists: H_z does not exist"):
        lh.measure(*networks.transformer(), blocks="embed", wrt="input")


def test_several_parts():
    case = networks.mlp(widths=(3, 4, 3), n=5)
    told = lh.measure(*case, blocks="head", wrt="params", part=("gauss_newton", "full"))
    dataset = told.to_xarray()
    assert dataset.kappa_plus.dims == ("block", "wrt", "part")
    assert repr(told) == "Measurement(2 local Hessians; blocks head)"


def test_messages():
    case = networks.mlp(widths=(3, 4, 3), n=5)
    with pytest.raises(KeyError, match=r"has no entry .* it has"):
        of_scales()["layer1", "params"]
    with pytest.raises(ValueError, match="`samples_per_block` must be a whole number"):
        lh.measure(*case, samples_per_block=0)
    ends = lh.Structured(blocks=lh.GolubKahan(which="largest", k=1))
    with pytest.raises(ValueError, match=r"`Structured` declines H_W of block `layer0`.*: `blocks` needs its numbers"):
        jax.jit(lambda p: lh.measure(case.chain, p, *case[2:], method=ends))(case.params)
    with pytest.raises(ValueError, match=r"`Dense\(max_size=2\)` cannot hold .* Use `Lanczos\(...\)`"):
        jax.jit(lambda p: lh.measure(case.chain, p, *case[2:], method=lh.Dense(max_size=2)))(case.params)
    with pytest.raises(TypeError, match=r"return the measurement from `jax.jit`"):
        jax.jit(lambda p: lh.measure(case.chain, p, *case[2:]).to_dataframe())(case.params)
    with pytest.raises(TypeError, match=r"there `lh.measure` works"):
        jax.jit(lambda p: lh.analyze(case.chain, p, *case[2:]).rows[0].rank)(case.params)
