"""Comparisons: statistics against scipy, tuning, resumption, tables; and the command line."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
import pytest
import scipy.stats
from typer.testing import CliRunner

from localhessian.lab import Comparison, Curve, Descent, Plan, Run, algorithm, compare, digits, interval, network
from localhessian.lab.cli import app
from localhessian.lab.comparison._outcome import best, final_runs
from localhessian.lab.comparison._trainer import Trainer
from localhessian.lab.comparison._view import LEGEND

pytestmark = pytest.mark.once

DATA = digits().take(100, 40)
NETWORK = network("linear-1", DATA, width=4)
PLAN = Plan(steps=6, batch=16, trials=2, tuning_seeds=1, evaluations=2)
ALGORITHMS = (algorithm("sgd"), algorithm("momentum"))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study and its folder."""
    out = tmp_path_factory.mktemp("study")
    return compare([NETWORK], ALGORITHMS, DATA, PLAN, out=out), out


def _focal(z, y):
    nll = optax.softmax_cross_entropy_with_integer_labels(z, y)
    return nll * (1 - jnp.exp(-nll)) ** 2


def made_up(algorithm, seed, accuracy, *, role="final", rate=0.1, loss=0.5, seconds=2.0, diverged=False):
    nan = float("nan")
    losses, tests = np.array([1.0, 0.5, 0.25, 0.125]), (np.array([loss + 1, loss]), np.array([0.2, accuracy]))
    if diverged:
        losses, tests = np.array([1.0, nan, nan, nan]), (np.array([nan, nan]), np.array([accuracy, nan]))
    seconds = np.array([seconds / 2, nan if diverged else seconds])
    return Run("net", algorithm, rate, seed, role, Curve(losses, np.array([2, 4]), *tests, seconds))


def test_factors_of_the_blocks_are_kept_with_a_run(tmp_path):
    """As a file, of the final runs as a tidy frame; files without them are those of other algorithms."""
    factors = np.array([[1.0, 2.0, np.inf], [0.5, 3.0, np.nan]])
    runs = [made_up("a", seed, 0.5, role=role) for seed, role in ((0, "final"), (1, "final"), (10**6, "tuning"))]
    runs = [dataclasses.replace(run, curve=run.curve._replace(factors=factors)) for run in runs]
    runs[0].save(tmp_path / runs[0].place)
    read = Run.load(tmp_path / runs[0].place)
    np.testing.assert_array_equal(read.curve.factors, factors)
    frame = Comparison((read, *runs[1:], made_up("b", 0, 0.5)), Plan(), {}).factors()
    assert frame[frame.seed == 1].factor.tolist()[:5] == [1, 2, np.inf, 0.5, 3]
    assert frame[["step", "block"]].to_numpy()[:6].tolist() == [[2, 1], [2, 2], [2, 3], [4, 1], [4, 2], [4, 3]]
    assert len(frame) == 12
    text = json.loads((tmp_path / runs[0].place).read_text())
    del text["curve"]["factors"]
    (tmp_path / runs[0].place).write_text(json.dumps(text))
    assert Run.load(tmp_path / runs[0].place).curve.factors.size == 0
    text["curve"]["factors"] = [[1.0]]
    (tmp_path / runs[0].place).write_text(json.dumps(text))
    with pytest.raises(ValueError, match="its factors are not those of its tests"):
        Run.load(tmp_path / runs[0].place)


@pytest.mark.parametrize("values", [[0.1, 0.4, 0.2, 0.9, 0.3], np.random.default_rng(0).normal(size=12)])
def test_the_interval_is_that_of_student(values):
    expected = scipy.stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values))
    mean, low, high, runs = interval(values)
    np.testing.assert_allclose((low, high), expected, rtol=1e-12)
    assert (mean, runs) == (np.mean(values), len(values))


def test_no_interval_is_claimed_from_few_runs_or_without_numbers():
    assert np.isnan(interval([1.0, 2.0, 3.0, 4.0])[1:3]).all()
    assert np.isnan(interval([1.0, 2.0, 3.0, 4.0, np.inf])[1:3]).all()
    with pytest.raises(ValueError, match="a mean over 1 run is no result"):
        interval([1.0])
    with pytest.raises(ValueError, match="`seeds` must be at least 2, got 1: a single run is no result"):
        Plan(seeds=1)
    assert Plan(first_seed=7).final_seeds() == range(7, 12)
    with pytest.raises(ValueError, match="`first_seed` must be between 0 and 999995, got 999996"):
        Plan(first_seed=999_996)


def test_the_best_rate_is_that_of_the_validation_accuracy():
    def trial(rate, accuracy, **more):
        return made_up("a", 10**6, accuracy, role="tuning", rate=rate, **more)

    assert best([trial(0.1, 0.7), trial(0.2, 0.9), trial(0.3, 0.8)])[:2] == (0.2, False)
    assert best([trial(0.1, 0.7), trial(0.2, 0.8), trial(0.3, 0.9)])[:2] == (0.3, True)
    assert best([trial(0.1, 0.7, loss=0.6), trial(0.2, 0.7, loss=0.4), trial(0.3, 0.7)]).learning_rate == 0.2
    assert best([trial(0.1, 0.1), trial(0.2, 0.9, diverged=True)]).learning_rate == 0.1
    two = [trial(0.1, 0.9), trial(0.1, 0.1), trial(0.2, 0.6), trial(0.2, 0.6)]  # two tuning seeds
    assert best(two).learning_rate == 0.2


def test_every_algorithm_has_the_same_budget(study):
    result, _ = study
    for name in ("sgd", "momentum"):
        runs = [run for run in result.runs if run.algorithm == name]
        assert [run.role for run in runs] == ["tuning"] * 2 + ["final"] * 5
        assert [run.seed for run in runs[2:]] == [0, 1, 2, 3, 4]
        assert {len(run.curve.losses) for run in runs} == {6}
    first = {(run.algorithm, run.seed): run.curve.losses[0] for run in result.runs if run.role == "final"}
    for seed in range(5):  # the same initialization and the same first batch
        assert first["sgd", seed] == first["momentum", seed]
    np.testing.assert_allclose(PLAN.learning_rates((0.001, 1.0)), [0.001, 1.0])
    np.testing.assert_allclose(Plan(trials=4).learning_rates((0.001, 1.0)), [0.001, 0.01, 0.1, 1.0])


def test_tuning_does_not_see_the_testing_part(study, tmp_path):
    result, _ = study
    other = DATA._replace(test_x=DATA.test_x[::-1] * 2, test_y=(DATA.test_y + 3) % 10)
    again = compare([NETWORK], ALGORITHMS, other, PLAN, out=tmp_path)
    for one, two in zip(result.runs, again.runs, strict=True):
        assert one.learning_rate == two.learning_rate
        np.testing.assert_array_equal(one.curve.losses, two.curve.losses)
        assert (one.role == "tuning") == np.array_equal(one.curve.loss, two.curve.loss)


def test_outcomes_are_means_and_differences_seed_by_seed():
    accuracies = {"a": [0.50, 0.60, 0.70, 0.80, 0.90], "b": [0.52, 0.61, 0.73, 0.82, 0.95]}
    runs = [made_up(name, 10**6, 0.5, role="tuning") for name in accuracies]
    for name, values in accuracies.items():
        runs += [made_up(name, seed, value, seconds=2 + (name == "b")) for seed, value in enumerate(values)]
    first, second = Comparison(tuple(reversed(runs)), Plan(), {}).outcomes()[::-1]
    assert (first.algorithm, second.algorithm) == ("a", "b")
    first, second = Comparison(tuple(runs), Plan(), {}).outcomes()
    assert first.gain is None
    paired = scipy.stats.ttest_rel(accuracies["b"], accuracies["a"]).confidence_interval(0.95)
    np.testing.assert_allclose(second.gain[1:3], paired, rtol=1e-9)
    np.testing.assert_allclose((first.accuracy.mean, second.cost, second.step_seconds.mean), (0.7, 1.5, 0.75))
    unfinished = Comparison(tuple(runs[:-1]), Plan(), {}).outcomes()
    assert [outcome.algorithm for outcome in unfinished] == ["a"]


def test_an_interrupted_study_goes_on_and_a_finished_one_is_read(study, tmp_path):
    result, _ = study

    def interrupt(done, total, what):
        assert total == 14
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare([NETWORK], ALGORITHMS, DATA, PLAN, out=tmp_path, progress=interrupt)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(files) == 5 + 1
    again = compare([NETWORK], ALGORITHMS, DATA, PLAN, out=tmp_path)
    assert all(path.stat().st_mtime_ns == made for path, made in files.items() if path.name != "study.json")
    for one, two in zip(result.runs, again.runs, strict=True):
        for name in ("losses", "at", "loss", "accuracy"):
            np.testing.assert_array_equal(getattr(one.curve, name), getattr(two.curve, name))
    assert not list(tmp_path.rglob("*.part"))
    more = compare([NETWORK], ALGORITHMS[:1], DATA, dataclasses.replace(PLAN, seeds=6), out=tmp_path)
    assert len(final_runs(more.runs, "linear-1", "sgd")) == 6
    compare([NETWORK], ALGORITHMS, DATA, PLAN, out=tmp_path)
    assert str(Comparison.load(tmp_path)) == str(again)
    with pytest.raises(ValueError, match=r"holds no study \(no study.json\)"):
        Comparison.load(tmp_path / "runs")


def test_a_folder_holds_one_study(study):
    _, out = study
    with pytest.raises(ValueError, match=r"holds a study with other settings \(steps: 6, now 7\): choose"):
        compare([NETWORK], ALGORITHMS, DATA, dataclasses.replace(PLAN, steps=7), out=out)
    with pytest.raises(ValueError, match="network linear-1"):
        compare([network("linear-1", DATA, width=3)], ALGORITHMS, DATA, PLAN, out=out)
    with pytest.raises(ValueError, match="algorithm sgd"):
        compare([NETWORK], [dataclasses.replace(ALGORITHMS[0], grid=(1e-4, 1e-1))], DATA, PLAN, out=out)
    # The same names for another optimizer, another loss.
    other = dataclasses.replace(
        ALGORITHMS[0], make=lambda chain, loss, rate: optax.sgd(rate, nesterov=True, momentum=0.1)
    )
    with pytest.raises(ValueError, match=r"\(program of linear-1 by sgd\)"):
        compare([NETWORK], [other], DATA, PLAN, out=out)
    with pytest.raises(ValueError, match=r"\(program of linear-1 by sgd; program of linear-1 by momentum\)"):
        compare([NETWORK], ALGORITHMS, DATA, PLAN, out=out, loss=_focal)
    with pytest.raises(ValueError, match="`algorithms` must have different names, got sgd, sgd"):
        compare([NETWORK], ALGORITHMS[:1] * 2, DATA, PLAN, out=out)
    with pytest.raises(ValueError, match=r"names become folders, .* got 'a/b'"):
        compare([NETWORK], [Descent("a/b", lambda chain, loss, rate: optax.sgd(rate))], DATA, PLAN, out=out)


def test_another_process_goes_on_with_a_study():
    code = (
        "import jax\nfrom localhessian.lab import algorithm, digits, network\n"
        "from localhessian.lab.comparison._trainer import Trainer\n"
        "data = digits().take(100, 40)\n"
        "print(Trainer(network('batchnorm', data, depth=2, width=4), algorithm('sgd')).program(data, 16))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    trainer = Trainer(network("batchnorm", DATA, depth=2, width=4), algorithm("sgd"))
    assert trainer.program(DATA, 16) == there
    assert Trainer(trainer.network, algorithm("momentum")).program(DATA, 16) != there


def test_a_damaged_run_is_named(study, tmp_path):
    result, _ = study
    run = made_up("a", 0, 0.3, diverged=True)
    path = tmp_path / run.place
    run.save(path)
    loaded = Run.load(path)
    np.testing.assert_equal(loaded.curve._asdict(), run.curve._asdict())
    assert (loaded.accuracy, loaded.loss, loaded.step_seconds) == (0.3, float("inf"), 0.5)
    path.write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match=r"seed=0.json` is not a finished run, or it is damaged: remove it"):
        Run.load(path)
    assert result.runs[0].curve.at.dtype.kind == "i"


def test_the_table_carries_every_reservation():
    few = [made_up("a", 10**6, 0.5, role="tuning")] + [made_up("a", seed, 0.5 + seed / 10) for seed in range(2)]
    text = str(Comparison(tuple(few), Plan(seeds=2), {}))
    assert "2?" in text
    assert "55.00?" in text
    assert "0.1*" in text
    body = text.removesuffix(LEGEND)
    assert "[" not in body
    runs = [made_up("a", 10**6, 0.5, role="tuning")]
    runs += [made_up("a", seed, 0.5 + seed / 10, diverged=seed == 3) for seed in range(5)]
    assert "inf 1!" in str(Comparison(tuple(runs), Plan(), {}))


def test_the_figure_draws_means_with_bands(study, tmp_path):
    result, _ = study
    figure = result.plot(tmp_path / "curves.png")
    assert isinstance(figure, matplotlib.figure.Figure)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    axes = figure.axes[0]
    assert [line.get_label() for line in axes.lines] == ["sgd", "momentum"]
    accuracy = [100 * run.accuracy for run in final_runs(result.runs, "linear-1", "sgd")]
    np.testing.assert_allclose(axes.lines[0].get_ydata()[-1], np.mean(accuracy))
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    low, high = interval(accuracy)[1:3]
    assert np.isclose(band, low).any()
    assert np.isclose(band, high).any()
    frame = result.to_dataframe()
    np.testing.assert_allclose(frame["accuracy"][0], np.mean(accuracy) / 100)


def test_unknown_names_are_said():
    with pytest.raises(ValueError, match="there is no algorithm 'apply_updates'"):
        algorithm("apply_updates")
    with pytest.raises(ValueError, match="there is no network 'resnet'"):
        network("resnet", DATA)


def test_networks_of_that_name(key):
    params = jax.eval_shape(lambda: network("sigmoid-3", DATA, width=5).start(key)[0])
    assert {name: p["kernel"].shape for name, p in params.items()} == {
        "dense1": (64, 5), "dense2": (5, 5), "dense3": (5, 5), "head": (5, 10),
    }  # fmt: skip
    assert len(network("skip", DATA, depth=2).chain) == 3
    assert len(network("gelu", DATA, depth=2).chain) == 3
    first = network("relu-2", DATA).chain
    assert first.blocks[0].apply is network("relu-9", DATA).chain.blocks[5].apply


def test_command_line_compares(tmp_path):
    options = ["--networks", "tanh-1", "--algorithms", "sgd,momentum", "--steps", "3", "--trials", "2", "--width", "3"]
    result = CliRunner().invoke(app, ["train", *options, "--images", "80", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} >= {
        "table.txt",
        "outcomes.csv",
        "curves.png",
        "runs",
        "study.json",
    }
    assert "momentum" in result.output
    again = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "table.txt").read_text() == (tmp_path / "table.txt").read_text()
    wrong = CliRunner().invoke(app, ["train", *options, "--seeds", "1", "--out", str(tmp_path)])
    assert wrong.exit_code == 2
    assert "a single run is no result" in " ".join(wrong.output.split())
    other = CliRunner().invoke(app, ["train", "--algorithms", "nothing", "--out", str(tmp_path)])
    assert "there is no algorithm 'nothing'" in " ".join(other.output.replace("│", " ").split())
