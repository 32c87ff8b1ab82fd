"""A model of one's own on the command line."""

import json
import subprocess
import sys

import jax.numpy as jnp
import networks
import pytest
from typer.testing import CliRunner

import localhessian as lh
from localhessian.lab._own import case_of
from localhessian.lab.cli import app


def mine():
    return networks.mlp()[:5]


def named():
    return dict(zip(("chain", "params", "x", "y", "loss"), mine(), strict=True))


def wrong():
    return {"chain": 1}


def nothing():
    return None


def failing():
    return jnp.ones(2) @ jnp.ones(3)


HERE = __name__


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """This module by its name, as one in the user's folder is."""
    monkeypatch.setitem(sys.modules, "own_models", sys.modules[HERE])


def run(*words):
    return CliRunner().invoke(app, list(words))


def test_a_plan_is_printed():
    told = run("plan", "own_models:mine", "--blocks", "head", "--wrt", "params")
    assert told.exit_code == 0, told.output
    assert "head" in told.output
    assert "compilation apart" in told.output


def test_a_model_is_analyzed_and_its_files_written(tmp_path):
    options = ["--blocks", "head", "--wrt", "params", "--out", str(tmp_path)]
    told = run("analyze", "own_models:mine", *options)
    assert told.exit_code == 0, told.output
    assert {"report.npz", "report.html", "figure.png"} <= {path.name for path in tmp_path.iterdir()}
    (row,) = lh.Report.load(tmp_path / "report.npz").rows
    assert row.block == "head"
    rows = json.loads(run("analyze", "own_models:named", *options, "--json", "--method", "Dense").output)
    assert rows[0]["method"].startswith("Dense")
    assert rows[0]["kappa_plus"] == pytest.approx(float(row.kappa_plus), rel=1e-3)


def test_what_is_no_case_is_told():
    for name, words in (("wrong", "`params` is missing"), ("nothing", "got None"), ("absent", "there is no")):
        with pytest.raises(ValueError, match=words):
            case_of(f"own_models:{name}")
    told = run("analyze", "own_models:mine", "--method", "qr")
    assert told.exit_code == 2
    assert "`--method` takes Structured" in " ".join(told.output.split())
    told = run("plan", "own_models:mine", "--blocks", "haed")
    assert told.exit_code == 2
    assert "Did you mean `head`?" in " ".join(told.output.split())
    assert jnp.shape(case_of("own_models:named")[2]) == jnp.shape(mine()[2])


def test_what_fails_in_a_case_keeps_its_traceback():
    told = run("plan", "own_models:failing")
    assert isinstance(told.exception, RuntimeError)
    assert isinstance(told.exception.__cause__, TypeError)


def test_a_plain_install_is_told_what_the_command_lacks():
    program = "import sys; sys.modules['typer'] = None; import localhessian.__main__"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr == "this needs typer: pip install 'localhessian[cli]'.\n"
