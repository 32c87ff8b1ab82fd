"""The claims of the paper: their frame by a claim made up here, and the small version of each with its outcome."""

import dataclasses
import json

import matplotlib.figure
import numpy as np
import pytest
from typer.testing import CliRunner

from localhessian.lab import digits
from localhessian.lab._reproduce import claim_named, listing, reproduce, setting_of
from localhessian.lab.claims import CLAIMS, Claim, Judgement, Setting, Verdict, evidence, read
from localhessian.lab.cli import app

pytestmark = pytest.mark.once

DIGITS = digits().take(256, 64)


def made_up(measure) -> Claim:
    def verdict(data):
        return Judgement(Verdict.HOLDS if (data.double == 2 * data.n).all() else Verdict.FAILS, "as it should be")

    return Claim(
        name="made-up",
        title="Twice is double",
        says="Nothing.",
        rule="double = 2 n",
        cost={"small": "nothing", "full": "nothing"},
        seeds={"small": 2, "full": 3},
        data={"small": "digits", "full": "digits"},
        points=lambda setting: [{"n": n, "seed": seed} for n in (1, 2) for seed in setting.seeds],
        measure=measure,
        table=lambda data: data.to_string(),
        figure=lambda data: matplotlib.figure.Figure(),
        verdict=verdict,
    )


def test_finished_cases_are_kept_and_not_repeated(tmp_path):
    seen, told = [], []

    def measure(point, work):
        seen.append((point["n"], point["seed"]))
        if len(seen) == 3:
            raise KeyboardInterrupt
        work.tell(0.5, "half")
        rows = [{"kind": kind, "double": np.float32(2 * point["n"]), "bad": kind == "b"} for kind in "ab"]
        return [*rows, {"kind": "none", "double": 2 * point["n"], "size": float("inf")}]

    claim, setting = made_up(measure), Setting("small", (0, 5), DIGITS)
    with pytest.raises(KeyboardInterrupt):
        evidence(claim, setting, tmp_path)
    data, judgement = reproduce(claim, setting, tmp_path, progress=lambda *say: told.append(say))
    assert seen == [(1, 0), (1, 5), (2, 0), (2, 0), (2, 5)]
    assert told[-1] == (4000, 4000, "done")
    assert (2500, 4000, "n=2, seed=0: half") in told
    assert data[["n", "seed", "kind"]].values.tolist()[2:4] == [[1, 0, "none"], [1, 5, "a"]]
    assert data["size"].isna().sum() == 8
    assert (data["size"] == np.inf).sum() == 4
    assert judgement == Judgement(Verdict.HOLDS, "as it should be")
    assert (tmp_path / "verdict.txt").read_text() == "HOLDS: as it should be\n"
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["seeds"], meta["cases"], meta["claim"]) == ([0, 5], 4, "made-up")
    assert {"jax", "numpy", "localhessian", "device", "dtype", "images", "seconds"} <= set(meta)
    assert read(tmp_path).equals(data)
    evidence(claim, dataclasses.replace(setting, seeds=(0, 5, 6)), tmp_path)
    assert seen[5:] == [(1, 6), (2, 6)]
    with pytest.raises(ValueError, match=r"another setting .*images"):
        evidence(claim, dataclasses.replace(setting, images=digits().take(32, 16)), tmp_path)


def test_what_is_asked_for_is_checked():
    claim = made_up(None)
    assert setting_of(claim, "small").seeds == (0, 1)
    assert setting_of(claim, "full", (4,)).seeds == (4,)
    with pytest.raises(ValueError, match="`size` must be one of small, full, got 'large'"):
        setting_of(claim, "large")
    with pytest.raises(ValueError, match="different numbers"):
        setting_of(claim, "small", (1, 1))
    with pytest.raises(ValueError, match="there is no claim 'tea': use back-propagation"):
        claim_named("tea")


def test_the_command_lists_the_claims_and_says_what_it_refuses():
    said = CliRunner().invoke(app, ["reproduce", "--list"])
    assert said.exit_code == 0
    assert all(name in said.output and claim.cost["full"] in said.output for name, claim in CLAIMS.items())
    assert all(
        claim.name == name and set(claim.cost) == set(claim.seeds) == {"small", "full"}
        for name, claim in CLAIMS.items()
    )
    assert listing() in said.output
    refused = CliRunner().invoke(app, ["reproduce", "tea"])
    assert refused.exit_code == 2
    assert "there is no claim" in refused.output


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The data of the small version of a claim, by the command's own path."""

    def run(name):
        return reproduce(CLAIMS[name], Setting("small", (0,), DIGITS), tmp_path_factory.mktemp(name))

    return run


def test_back_propagation_is_back_matching(small):
    data, judgement = small("back-propagation")
    assert judgement.verdict is Verdict.HOLDS
    assert set(data.precision) == {"float32", "float64"}
    assert data[data.precision == "float64"].error.max() < 1e-12
    assert data.gradient.min() > 0
    wrong = data.assign(error=data.error.where(data.precision == "float64", 1e-3))
    assert CLAIMS["back-propagation"].verdict(wrong).verdict is Verdict.WITH_LIMITS
    assert CLAIMS["back-propagation"].verdict(data.assign(error=1e-3)).verdict is Verdict.FAILS
