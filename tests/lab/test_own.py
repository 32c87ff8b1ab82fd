"""A model of one's own on the command line."""

import dataclasses
import json
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import networks
import optax
import pytest
from flax import linen, nnx
from typer.testing import CliRunner

import localhessian as lh
from localhessian.lab._own import case_of
from localhessian.lab.cli import app

pytestmark = pytest.mark.once


def mine():
    return networks.mlp()[:5]


def named():
    return dict(zip(("chain", "params", "x", "y", "loss"), mine(), strict=True))


def model():
    x, y = jax.random.normal(jax.random.key(0), (6, 3)), jnp.arange(6) % 2
    layers = nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(4, 2, rngs=nnx.Rngs(1))
    return nnx.Sequential(*layers), x, y, optax.softmax_cross_entropy_with_integer_labels


def linen_model():
    _, x, y, loss = model()
    module = linen.Sequential([linen.Dense(4), linen.tanh, linen.Dense(2)])
    variables = module.init(jax.random.key(0), x)
    return {"model": module, "variables": variables, "x": x, "y": y, "loss": loss}


def equinox_model():
    return eqx.nn.MLP(3, 2, width_size=4, depth=1, key=jax.random.key(0)), *model()[1:]


def cut():
    of_nnx, x, *rest = model()
    return lh.chain_from_nnx(of_nnx, x, at="layers.0"), x, *rest


def wrong():
    return {"chain": 1}


def unknown():
    return {"model": 1, "params": 2}


def too_few():
    return model()[:3]


def misfit():
    return model()[0], jnp.ones((6, 2)), *model()[2:]


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


def test_again_goes_on_where_limits_or_an_interrupt_cut_short(tmp_path):
    path, words = tmp_path / "report.npz", ("analyze", "own_models:mine", "--out", str(tmp_path), "--json")
    full = lh.analyze(*mine())
    assert run(*words, "--max-bytes", "1").exit_code == 0
    short = lh.Report.load(path)
    # One row as it would be, to be seen again as it is.
    kept = dataclasses.replace(full.rows[0], note="as it was")
    dataclasses.replace(short, rows=(kept, *short.rows[1:])).save(path)
    assert {row.status for row in short.rows} == {"SKIPPED"}
    assert run(*words).exit_code == 0
    whole = lh.Report.load(path)
    assert [row.lambda_max for row in whole.rows] == pytest.approx([row.lambda_max for row in full.rows])
    assert whole.rows[0] == kept
    # What is finished begins anew, of another analysis what was cut short too; what is interrupted is not lost.
    assert run(*words).exit_code == 0
    assert lh.Report.load(path).rows == full.rows
    short.save(path)
    assert run(*words, "--seed", "1").exit_code == 0
    dataclasses.replace(whole, meta=whole.meta | {"interrupted": True}).save(path)
    told = run(*words, "--seed", "1")
    assert told.exit_code == 2
    words_told = " ".join(told.output.replace("│", " ").split())
    assert "is an interrupted analysis of another model, data or settings: name another folder by `--out`" in words_told
    assert lh.Report.load(path).meta["interrupted"]
    assert run(*words).exit_code == 0
    assert lh.Report.load(path).rows[0] == kept


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("model", ("layers.0", "layers.2")),
        ("linen_model", ("layers_0", "layers_2")),
        ("equinox_model", ("layers.0", "layers.1")),
        ("cut", ("layers.0", "output")),
    ],
)
@pytest.mark.relaxed
def test_a_model_with_data_is_cut(name, blocks):
    chain, params, x, y, loss, context = case_of(f"own_models:{name}")
    assert chain.names == blocks
    assert lh.back_match(chain, params, x, y, loss, context).objective > 0


def test_what_is_no_case_is_told():
    for name, words in (
        ("wrong", "`params` is missing"),
        ("nothing", "got None"),
        ("absent", "there is no"),
        ("unknown", r"or, of linen, \(model, variables, x, y, loss\), also by these names, .* `params` is unknown"),
        ("too_few", "got 3 values, the first a `Sequential`"),
        ("misfit", "the model that `own_models:misfit` returns cannot be cut at its `x`: "),
    ):
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
