"""The main job on small networks: rows, samples, interruption, messages."""

import copy
import re

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import localhessian as lh
from localhessian.analysis import _route as route
from localhessian.analysis import _survey as survey
from localhessian.analysis._asked import UNASKED, chosen
from localhessian.analysis._findings import findings
from localhessian.analysis._notes import SURVEYED
from localhessian.lab import MODELS, digits, digits_network, train
from localhessian.linalg import Declined

pytestmark = pytest.mark.once


def dense_kappa(case, block):
    """kappa_plus of H_W by float64 SVD of the Jacobian, assembled here."""
    matching = networks.matched(case)
    factor = np.asarray(lh.local_hessian(matching, block).factor.to_dense(), np.float64)
    sigma = np.linalg.svd(factor, compute_uv=False)
    sigma = sigma[sigma > 100 * jnp.finfo(jnp.result_type(float)).eps * sigma[0]]
    return (sigma[0] / sigma[-1]) ** 2, len(sigma)


def test_a_row_for_every_block_and_side_against_dense_arithmetic():
    case = networks.mlp()
    report = lh.analyze(*case)
    assert [(row.block, row.wrt) for row in report.rows] == [
        (b, w) for b in case.chain.names for w in ("params", "input")
    ]
    for name in case.chain.names:
        kappa, rank = dense_kappa(networks.mlp, name)
        row = report[name, "params"]
        assert row.rank == rank
        np.testing.assert_allclose(row.kappa_plus, kappa, rtol=1e-3)
        assert row.kappa_lower <= kappa * (1 + 1e-6) <= row.kappa_upper * (1 + 1e-5)
        assert row.converged


def test_uncoupled_H_z_is_the_distribution_over_samples():
    case = networks.mlp()
    report = lh.analyze(*case, blocks=["layer1"], wrt=["input"], samples=[0, 3, 6])
    kappas = []
    for i in (0, 3, 6):
        spectrum = lh.spectrum(lh.local_hessian(networks.matched(networks.mlp), "layer1", "input", samples=i))
        kappas.append(float(lh.condition_number(spectrum).value))
    np.testing.assert_allclose(report.spectra["layer1", "input", "gauss_newton"].kappas, kappas, rtol=1e-4)
    np.testing.assert_allclose(report["layer1", "input"].kappa_plus, np.median(kappas), rtol=1e-4)
    assert report["layer1", "input"].samples == 3


def test_coupled_H_z_is_one_matrix_of_the_batch():
    row = lh.analyze(*networks.normalized(), blocks=["norm"], wrt=["input"])["norm", "input"]
    assert (row.coupled, row.size, row.samples) == (True, 30, 6)


def test_what_does_not_exist_is_said_and_not_crashed():
    report = lh.analyze(*networks.transformer(), blocks=["embed"])
    assert report["embed", "input"].note == "H_z does not exist: the block's input holds integers"
    assert np.isnan(report["embed", "input"].kappa_plus)
    report = lh.analyze(*networks.convolutional(), blocks=["flatten"], samples_per_block=1)
    assert report["flatten", "params"].note == "H_W does not exist: the block has no parameters"
    assert report["flatten", "input"].kappa_plus == pytest.approx(1)


def test_all_parts():
    report = lh.analyze(*networks.mlp(), blocks=["layer1"], wrt=["params"], part=("gauss_newton", "full", "residual"))
    assert [row.part for row in report.rows] == ["gauss_newton", "full", "residual"]
    assert report["layer1", "params", "residual"].status == "INDEFINITE"


def test_progress_is_told():
    seen = []
    lh.analyze(*networks.mlp(), blocks=["head"], progress=lambda *told: seen.append(told))
    assert seen == [
        (0, 2, "head / params / gauss_newton"),
        (1, 2, "head / input / gauss_newton"),
        (2, 2, "done"),
    ]


def test_an_interruption_keeps_what_is_done_and_resumes():
    case = networks.mlp()
    whole = lh.analyze(*case)
    calls = iter(range(10))

    def interrupt_once(done, total, what):
        if next(calls) == 3:
            raise KeyboardInterrupt

    partial = lh.analyze(*case, progress=interrupt_once)
    assert partial.meta["interrupted"]
    assert len(partial.rows) == 3
    resumed = lh.analyze(*case, resume=partial)
    assert resumed.rows == whole.rows
    assert not resumed.meta["interrupted"]
    changed = case._replace(x=case.x + 1)
    with pytest.raises(ValueError, match="`resume` is a report of another model, data or settings"):
        lh.analyze(*changed, resume=partial)


def test_messages():
    with pytest.raises(KeyError, match=re.escape("there is no block `haed` in this chain. Did you mean `head`?")):
        lh.analyze(*networks.mlp(), blocks=["haed"])
    with pytest.raises(ValueError, match="`samples_per_block` must be a whole number of at least 1, got 0"):
        lh.analyze(*networks.mlp(), samples_per_block=0)


@pytest.mark.parametrize("kind", networks.waiting(MODELS, ("skip", "batchnorm")))
def test_the_networks_of_the_demonstration(kind, tol):
    data = digits()
    chain, params = digits_network(kind, jax.random.key(0), depth=2, width=3)
    trained = train(chain, params, data, steps=30, learning_rate=0.1)
    assert trained.losses[-5:].mean() < trained.losses[:5].mean()
    x, y = data.train_x[:4], data.train_y[:4]
    check = lh.check_identities(chain, params, x, y, networks.cross_entropy)
    assert not check.failures
    coupled = lh.back_match(chain, params, x, y, networks.cross_entropy).coupled
    assert {bool(coupled[name]) for name in ("stem", "conv2")} == {kind == "batchnorm"}


def test_the_networks_are_of_equal_size():
    shapes = []
    for kind in MODELS:
        params = digits_network(kind, jax.random.key(0)).params
        shapes.append({name: (p["kernel"].shape, p["bias"].shape) for name, p in params.items()})
    assert shapes[0] == shapes[1] == shapes[2]
    with pytest.raises(ValueError, match="`kind` must be one of plain, batchnorm, skip, got 'dense'"):
        digits_network("dense", jax.random.key(0))


def test_digits_are_the_images_of_the_source():
    data = digits()
    assert data.train_x.shape == (1437, 8, 8, 1)
    assert data.test_x.shape == (360, 8, 8, 1)
    assert np.bincount(np.concatenate([data.train_y, data.test_y])).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    assert abs(float(data.train_x.mean())) < 1e-5
    assert float(data.train_x.std()) == pytest.approx(1, abs=1e-5)


def test_skip_bound_of_the_theory():
    """z + phi(z) with ||d phi/dz|| = eps < 1 has kappa(H_z) <= ((1 + eps) / (1 - eps))^2."""
    case = networks.skip()
    matching = networks.matched(networks.skip)
    for name in ("layer0", "layer1"):
        apply = matching.chain.blocks[matching.chain.index(name)]
        z = matching.activations[matching.chain.index(name)]
        jacobian = jax.jacobian(lambda row, a=apply, p=case.params[name]: a(p, row[None])[0])
        norms = np.linalg.norm(np.asarray(jax.jit(jax.vmap(jacobian))(z)) - np.eye(5), ord=2, axis=(1, 2))
        assert norms.max() < 1
        H = lh.local_hessian(matching, name, "input", samples=range(len(z)))
        kappa = lh.condition_number(lh.spectrum(H)).whole
        assert np.all(np.asarray(kappa) <= ((1 + norms) / (1 - norms)) ** 2 * (1 + 1e-5))


def test_what_samples_mean():
    """A count is a whole number of any type; samples are indices or a mask; what is neither is refused."""
    count, indices = lambda number: chosen(None, number, 6), lambda samples: chosen(samples, 16, 6)
    assert count(3) == count(np.int64(3)) == count(np.array(3)) == count(jnp.array(3)) == (0, 2, 5)
    assert indices([True, False, True, False, False, False]) == indices((0, 2)) == (0, 2)
    assert indices(np.int64(4)) == indices(4) == (4,)
    for wrong in (0, True, 2.0, "a"):
        with pytest.raises(ValueError, match="`samples_per_block` must be"):
            count(wrong)
    for wrong in (True, 2.0, np.zeros((2, 2), int), [[0], [1, 2]], "a", [], 6):
        with pytest.raises(ValueError, match="`samples` must be"):
            indices(wrong)


def weighted(weights):
    """The mlp with a weight for each sample: 0 is a padded one."""
    case = networks.mlp()
    return case._replace(y=(case.y, jnp.asarray(weights)), loss=lambda z, y: case.loss(z, y[0]) * y[1])


def test_samples_without_curvature_do_not_blank_the_row():
    n = len(networks.mlp().x)
    padded = lh.analyze(*weighted(jnp.ones(n).at[1].set(0.0)), blocks="head", wrt="input")["head", "input"]
    others = [i for i in range(n) if i != 1]
    without = lh.analyze(*networks.mlp(), blocks="head", wrt="input", samples=others)["head", "input"]
    assert padded.note == f"1 of {n} samples (1): no curvature, H = 0"
    for column in ("rank", "lambda_max", "lambda_min_nonzero", "kappa_plus", "kappa_lower", "kappa_upper", "kappa_q05"):
        assert getattr(padded, column) == pytest.approx(getattr(without, column), rel=1e-4)
    nothing = lh.analyze(*weighted(jnp.zeros(n)), blocks="head")
    assert [(row.status, row.rank, row.lambda_max) for row in nothing.rows] == [("ZERO", 0, 0), ("ZERO", 0, 0)]
    assert np.isnan([getattr(row, name) for row in nothing.rows for name in ("kappa_plus", "kappa_lower")]).all()
    assert "`head` has no curvature at all" in str(findings({"": nothing}))
    assert [line.split("  0  ")[-1] for line in str(nothing).splitlines() if "head" in line] == [
        "no curvature, H = 0",
        f"{n} of {n} samples: no curvature, H = 0",
    ]


def test_a_block_that_fails_is_a_row_with_its_sentence_and_the_others_stay(monkeypatch):
    case = networks.mlp()
    right = route.spectrum

    def spectrum(operator, *args, **kwargs):
        if "`layer1`" in operator.label:
            raise MemoryError("cannot hold it")
        return right(operator, *args, **kwargs)

    monkeypatch.setattr(route, "spectrum", spectrum)
    report = lh.analyze(*case, wrt="params")
    failed = report["layer1", "params"]
    assert (failed.status, failed.converged, failed.note) == ("FAILED", False, "MemoryError: cannot hold it")
    assert all(row.has_figures for row in report.rows if row is not failed)
    assert "`layer1` could not be analyzed" in str(findings({"": report}))
    monkeypatch.undo()
    assert lh.analyze(*case, wrt="params", resume=report) == lh.analyze(*case, wrt="params")


def test_products_that_are_not_finite_have_their_status_in_row_table_page_and_findings(tmp_path):
    """The derivative of the square root at 0."""
    case = networks.mlp()
    broken = lh.Block("layer1", lambda p, z: jnp.tanh(jnp.sqrt(jnp.abs(z - z)) @ p["kernel"]))
    blocks = [broken if block.name == "layer1" else block for block in case.chain.blocks]
    report = lh.analyze(lh.Chain(blocks), *case[1:])
    assert report["layer1", "input"].status == "NON_FINITE"
    assert "products are not finite" in str(report)
    assert "products are not finite" in report.html(tmp_path / "page.html").read_text()
    assert any(finding.text.startswith("First: ") for finding in findings({"": report})[:2])


def test_resume_knows_all_that_the_numbers_depend_on():
    case = networks.mlp()
    partial = lh.analyze(*case, blocks="head", wrt="params")
    relu = [lh.Block(b.name, lambda p, z, b=b: jnp.abs(b(p, z))) for b in case.chain.blocks]
    others = {
        "blocks": case._replace(chain=lh.Chain(relu)),
        "loss": case._replace(loss=lambda z, y: 2 * case.loss(z, y)),
        "context": case._replace(context=jnp.ones(3)),
        "shapes": case._replace(x=case.x[:-1], y=case.y[:-1]),
        "dtypes": case._replace(y=case.y.astype(jnp.int8)),
    }
    for changed in others.values():
        with pytest.raises(ValueError, match="`resume` is a report of another"):
            lh.analyze(*changed, blocks="head", wrt="params", resume=partial)
    for settings in ({"samples": [0, 1]}, {"method": lh.Dense(max_size=5000)}, {"key": jax.random.key(1)}):
        with pytest.raises(ValueError, match="`resume` is a report of another"):
            lh.analyze(*case, blocks="head", wrt="params", resume=partial, **settings)
    # The same function, written again.
    again = [lh.Block(b.name, lambda p, z, b=b: b(p, z)) for b in case.chain.blocks]
    assert lh.analyze(lh.Chain(again), *case[1:], blocks="head", wrt="params", resume=partial) == partial


def test_names_samples_and_generators_mean_what_they_say(dtype):
    case = networks.mlp()
    both = lh.analyze(*case, blocks=(name for name in ["layer1", "head"]), wrt=(side for side in ["input"]))
    assert [row.key for row in both.rows] == [("layer1", "input", "gauss_newton"), ("head", "input", "gauss_newton")]
    one = lh.analyze(*case, blocks="head", wrt="input", samples=np.int64(2))
    mask = np.arange(len(case.x)) == 2
    assert one.rows[0].samples == 1
    assert one == lh.analyze(*case, blocks="head", wrt="input", samples=mask)
    assert one == lh.analyze(*case, blocks="head", wrt="input", samples=[2])
    for wrong, error, sentence in (
        ({"wrt": "weights"}, ValueError, "`wrt` takes 'params', 'input', got 'weights'"),
        ({"part": "gn"}, ValueError, "`part` takes"),
        ({"blocks": 3}, TypeError, "`blocks` must be a name or several, got 3"),
        ({"samples": np.zeros((2, 2), int)}, ValueError, "`samples` must be an index"),
        ({"samples_per_block": 1.5}, ValueError, "`samples_per_block` must be a whole number"),
        ({"resume": {}}, TypeError, "`resume` must be a report"),
    ):
        with pytest.raises(error, match=re.escape(sentence)):
            lh.analyze(*case, **wrong)
    with pytest.raises(TypeError, match="`analyze` runs on the host"):
        jax.jit(lambda x: lh.analyze(case.chain, case.params, x, case.y, case.loss).rows[0].kappa_plus)(case.x)


def test_a_row_that_is_interrupted_keeps_what_its_products_have_shown():
    case = networks.mlp()
    told = []

    def stop(done, total, what):
        told.append(what)

    method = lh.Lanczos(max_matvecs=20, basis_size=8)

    def interrupt(operator, *args, **kwargs):
        found = lh.spectrum(operator, method, throw=False)
        raise lh.SpectrumInterrupt(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(route, "spectrum", interrupt)
        report = lh.analyze(*case, wrt="params", progress=stop)
    (row,) = report.rows
    assert (row.status, row.converged, report.meta["interrupted"]) == ("INTERRUPTED", False, True)
    assert row.lambda_max > 0
    assert "interrupted after" in row.note
    assert lh.analyze(*case, wrt="params", resume=report).rows[0].status != "INTERRUPTED"


def test_reports_compare_print_and_draw_when_nothing_was_found_too(tmp_path):
    case = networks.mlp()

    def stop(done, total, what):
        if what != "interrupted":
            raise KeyboardInterrupt

    empty = lh.analyze(*case, progress=stop)
    assert empty.rows == ()
    report = lh.analyze(*case, blocks="head")
    assert report == report.with_meta(label="x")
    assert report != empty
    assert copy.deepcopy(report) == report
    with pytest.raises(TypeError):
        report.meta["label"] = "y"
    empty.plot(tmp_path / "empty.png")
    empty.html(tmp_path / "empty.html")
    assert "There is no spectrum" in str(findings({"": empty}))


def test_what_does_not_come_whole_has_a_certified_top_bounds_and_estimates(monkeypatch):
    # The same operators whole and surveyed: every bound must hold, every estimate lie in its interval.
    chain = lh.Chain(
        [
            lh.Block("a", lambda w, z: jnp.tanh(z @ w)),
            lh.Block("b", lambda w, z: (z - z.mean(0, keepdims=True)) @ w),
            lh.Block("c", lambda w, z: z @ w),
        ]
    )
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    params = {"a": draw(12, 30), "b": draw(30, 30), "c": draw(30, 10)}
    case = chain, params, draw(20, 12), rng.integers(0, 10, 20), networks.cross_entropy
    whole = lh.analyze(*case, samples=[0, 3, 6], method=lh.Dense())
    monkeypatch.setattr(route, "MAX_OPERATIONS", 1.0)
    monkeypatch.setattr(lh.Structured, "find", _nothing)
    report = lh.analyze(*case, samples=[0, 3, 6])
    surveyed = [row for row in report.rows if "density" in row.method]
    assert [row.key[:2] for row in surveyed] == [("a", "params"), ("b", "params"), ("b", "input"), ("c", "params")]
    for row in surveyed:
        exact, spectrum = whole[row.key], whole.spectra[row.key]
        assert (row.converged, row.status, row.note) == (True, "CONVERGED", SURVEYED.format("GolubKahan"))
        assert row.method == f"{survey.TOP} + spectral_density(steps=24)"
        assert np.isnan([row.kappa_plus, row.lambda_min_nonzero]).all()
        np.testing.assert_allclose(
            row.lambda_max, exact.lambda_max, rtol=6e-3
        )  # of the square of what is known to 3e-3
        assert 1 <= row.kappa_lower <= exact.kappa_plus * (1 + 1e-3)
        assert row.kappa_upper == np.inf
        assert row.rank <= exact.rank
        trace = np.sum(spectrum.eigenvalues * spectrum.multiplicities)
        np.testing.assert_allclose(exact.trace, trace, rtol=1e-5)
        assert abs(row.trace - trace) <= 5 * row.trace_error
        np.testing.assert_allclose(row.effective_rank, row.trace / row.lambda_max, rtol=0.1)
        # Estimated by one start on 90 to 600 dimensions, of values that spread: by 4 deviations of such, at most.
        np.testing.assert_allclose(row.stable_rank, exact.stable_rank, rtol=0.8)
        for q in ("kappa_q05", "kappa_q95"):
            lower, value, upper = (getattr(row, f"{q}{end}") for end in ("_lower", "", "_upper"))
            assert lower <= getattr(exact, q) <= upper
            assert lower <= value <= upper if np.isfinite(upper) else np.isnan(value)  # no estimate without an end
            assert getattr(exact, f"{q}_lower") == getattr(exact, q) == getattr(exact, f"{q}_upper")
    assert "GolubKahan + density" in report.table(wide=True)
    assert "±" in report.table(wide=True)
    assert str(report).count(SURVEYED.format("GolubKahan")) == 1


def _nothing(structured, operator):
    raise Declined("nothing here")


def test_of_blocks_without_parameters_nothing_is_computed_unless_asked():
    case = networks.convolutional()
    report = lh.analyze(*case, wrt="input", samples_per_block=1)
    assert report["flatten", "input"].note == UNASKED
    assert str(report).count(UNASKED) == 1
    named = lh.analyze(*case, wrt="input", samples_per_block=1, blocks="flatten", resume=report)
    assert named["flatten", "input"].kappa_plus == pytest.approx(1)
