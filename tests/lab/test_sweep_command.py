"""Sweeps on the command line and in files."""

import numpy as np
import pytest
import xarray
from typer.testing import CliRunner

from localhessian.lab._sweeps import axis_of
from localhessian.lab.cli import app

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=0..3", [0, 1, 2, 3]),
        ("a=-1 .. 1", [-1, 0, 1]),
        ("a=logspace(-1,1,3)", [0.1, 1.0, 10.0]),
        ("a=linspace(0, 1, 3)", [0.0, 0.5, 1.0]),
        ("a=1,2.5", [1, 2.5]),
        ("a=true,false", [True, False]),
        ("a=batch,none", ["batch", "none"]),
    ],
)
def test_axes_as_they_are_written(text, values):
    name, found = axis_of(text)
    assert name == "a"
    assert found == pytest.approx(values) if isinstance(values[0], float) else found == values


@pytest.mark.parametrize("text", ["a", "a=", "a=logspace(1,2)", "a=linspace(x,1,2)"])
def test_axes_that_are_none(text):
    with pytest.raises(ValueError, match="`a`"):
        axis_of(text)


def run(*words):
    return CliRunner().invoke(app, ["sweep", *words])


def test_a_sweep_from_words_and_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["sweep_cases:product", "--axis", "a=0..2", "--axis", "b=linspace(1,2,2)", "--no-compiled"]
    foretold = run(*words, "--dry-run")
    assert foretold.exit_code == 0, foretold.output
    assert "6 cases: a (3) x b (2)\n0 compilations" in foretold.output
    done = run(*words, "--out", "s.zarr")
    assert "6 of 6 cases in about" in done.output
    assert "Written: s.zarr" in done.output
    (tmp_path / "s.toml").write_text(
        'case = "sweep_cases:product"\nout = "t.nc"\ncompiled = false\n[axes]\na = "0..2"\nb = [1.0, 2.0]\n'
    )
    assert run("s.toml").exit_code == 0
    for name in ("s.zarr", "t.nc"):
        found = xarray.open_dataset(tmp_path / name)
        np.testing.assert_array_equal(found["product"], np.outer([0, 1, 2], [1.0, 2.0]))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere:case", "--axis", "a=1"], "there is no `nowhere:case`"),
        (["sweep_cases", "--axis", "a=1"], "a case is written"),
        (["sweep_cases:np.pi", "--axis", "a=1"], "is no function"),
        (["sweep_cases:product", "--axis", "a=1"], "must take each of `axes`"),
        (["nowhere.toml"], "cannot be read as TOML"),
    ],
)
def test_what_is_wrong_is_said(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.replace("│", " ").split())
