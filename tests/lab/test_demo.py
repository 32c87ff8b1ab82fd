"""The demonstration: what is done is kept, whenever it is interrupted."""

import pytest
from typer.testing import CliRunner

import localhessian as lh
from localhessian.lab import _demo
from localhessian.lab.cli import app

pytestmark = pytest.mark.once

OPTIONS = ["demo", "--models", "skip", "--depth", "1", "--width", "2", "--steps", "3", "--batch", "3"]
BEFORE, AFTER = "skip-at-initialization.npz", "skip-after-training.npz"


@pytest.fixture
def analyzed(monkeypatch):
    """A line for each analysis."""
    calls = []

    def analyze(*args, **kwargs):
        calls.append("on" if kwargs["resume"] else "anew")
        return lh.analyze(*args, **kwargs)

    monkeypatch.setattr(_demo, "analyze", analyze)
    return calls


def run(out, *more):
    return CliRunner().invoke(app, [*OPTIONS, "--out", str(out), *more])


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def test_interrupted_in_training_it_keeps_what_is_done_and_goes_on(tmp_path, monkeypatch, analyzed):
    with monkeypatch.context() as patch:
        patch.setattr(_demo, "train", interrupted)
        first = run(tmp_path)
    assert first.exit_code == 130
    assert f"Interrupted; the same command goes on from what is in {tmp_path}/." in first.output
    assert "skip, at initialization" in first.output
    assert {path.name for path in tmp_path.iterdir()} == {BEFORE, "figure.png", "report.html"}
    assert run(tmp_path).exit_code == 0
    assert analyzed == ["anew", "anew"]  # before, after
    assert run(tmp_path).exit_code == 0
    assert analyzed == ["anew"] * 4  # a finished one is made again


def test_interrupted_in_an_analysis_it_goes_on_within(tmp_path, monkeypatch, analyzed):
    whole, halves = lh.analyze, iter([1])

    def half(*args, progress, **kwargs):
        def stop(done, total, what):
            if done == 1 and next(halves, 0):
                raise KeyboardInterrupt

        return whole(*args, progress=stop, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(lh, "analyze", half)
        assert run(tmp_path).exit_code == 130
    partial = lh.Report.load(tmp_path / BEFORE)
    assert partial.meta["interrupted"]
    other = run(tmp_path, "--seed", "1")
    assert other.exit_code == 0
    partial.save(tmp_path / BEFORE)
    assert run(tmp_path).exit_code == 0
    assert analyzed == ["anew", "anew", "anew", "on", "anew"]  # of another seed nothing is taken
    assert not lh.Report.load(tmp_path / BEFORE).meta["interrupted"]
    assert len(lh.Report.load(tmp_path / AFTER)) == 4


def test_it_is_quiet_in_pipes(tmp_path, monkeypatch):
    monkeypatch.setattr(_demo, "train", interrupted)
    assert run(tmp_path).stderr == ""
