"""The claims of the paper: their frame by a claim made up here, and the small version of each with its outcome."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
import pytest
from flax import nnx
from typer.testing import CliRunner

from localhessian import Block, Chain, Dense, back_match, local_hessian, spectrum
from localhessian.lab import Images, digits
from localhessian.lab._reproduce import claim_named, listing, reproduce, setting_of
from localhessian.lab.claims import (
    CLAIMS,
    Claim,
    Judgement,
    Setting,
    Verdict,
    _batch_norm,
    _orthogonal,
    _scale_amended,
    _signals,
    _skips,
    evidence,
    read,
)
from localhessian.lab.claims._dense import initialized
from localhessian.lab.cli import app
from localhessian.lab.zoo._layers import convolution

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
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


def test_the_command_is_interrupted_and_goes_on(tmp_path, monkeypatch):
    rings = iter([KeyboardInterrupt])

    def measure(point, work):
        if point["seed"] == 3 and next(rings, None):
            raise KeyboardInterrupt
        return [{"double": 2 * point["n"]}]

    monkeypatch.setitem(CLAIMS, "made-up", made_up(measure))
    asked = ["reproduce", "made-up", "--seed", "2", "--seed", "3", "--out", str(tmp_path)]
    stopped = CliRunner().invoke(app, asked)
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.output
    assert len(list((tmp_path / "cases").glob("1-2-*.json"))) == 1
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0
    assert "HOLDS: as it should be" in done.output
    assert (tmp_path / "figure.png").exists()
    assert read(tmp_path).seed.tolist() == [2, 3, 2, 3]


PUBLISHED = sorted(data.parent for data in (ROOT / "docs" / "claims").rglob("data.csv"))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_the_page_says_what_the_committed_data_say(folder):
    data = read(folder)
    claim = CLAIMS[data.attrs["claim"]]
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert f"**Verdict.** {claim.verdict(data)}\n" in page
    assert f"```\n{claim.table(data)}\n```" in page
    assert (folder / "figure.png").stat().st_size < 100_000
    assert claim.name in folder.relative_to(ROOT).parts
    assert data.attrs["size"] == "full"


def test_every_claim_is_published():
    assert {data.name for data in (ROOT / "docs" / "claims").iterdir()} == set(CLAIMS)


def test_every_gain_stands_beside_its_name():
    """Networks of which not all algorithms are there share the axis."""
    data = read(ROOT / "docs" / "claims" / "scale-amended").query("algorithm != 'adam' or network != 'resnet20-by4'")
    axes = CLAIMS["scale-amended"].figure(data).axes
    names = {tick: text.get_text() for tick, text in zip(axes[0].get_yticks(), axes[0].get_yticklabels(), strict=True)}
    titles = _scale_amended.ALGORITHMS | _scale_amended.MORE
    for ax, (_, part) in zip(axes, data[data.gain.notna()].groupby("network", sort=False), strict=True):
        at = ax.lines[0].get_ydata()
        assert [names[y] for y in at] == [titles[one] for one in part.algorithm]
        assert all(ax.get_ylim()[0] < y < ax.get_ylim()[1] for y in at)


def test_larger_images_take_a_larger_network():
    claim, seeds = CLAIMS["scale-amended"], (0, 1, 2, 3, 4)
    names = {}
    for side in (32, 64):
        x, y = np.zeros((3, side, side, 3), np.uint8), np.arange(3)
        names[side] = [point["network"] for point in claim.points(Setting("full", seeds, Images(x, y, x, y)))]
    assert names == {32: ["vgg13-bn-by4", "resnet20-by4"], 64: ["resnet18-by8"]}


@pytest.mark.parametrize("name", ["back-propagation", "skips", "batch-norm"])
def test_claims_of_convolutions_say_that_they_want_images(name, tmp_path):
    x, y = np.zeros((8, 20), np.float32), np.arange(8) % 2
    setting = Setting("small", (0,), Images(x, y, x, y))
    with pytest.raises(ValueError, match=r"' convolves images .* these samples have the shape \(20,\)\."):
        reproduce(CLAIMS[name], setting, tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The data of the small version of a claim, by the command's own path."""

    def run(name):
        return reproduce(CLAIMS[name], Setting("small", (0,), DIGITS), tmp_path_factory.mktemp(name))

    return run


def test_back_propagation_is_back_matching(small):
    claim, (data, judgement) = CLAIMS["back-propagation"], small("back-propagation")
    assert judgement.verdict is Verdict.HOLDS
    assert set(data.precision) == {"float32", "float64"}
    assert data[data.precision == "float64"].error.max() < 1e-12
    assert data.gradient.min() > 0
    wrong = data.assign(error=data.error.where(data.precision == "float64", 1e-3))
    assert claim.verdict(wrong).verdict is Verdict.WITH_LIMITS
    assert claim.verdict(data.assign(error=1e-3)).verdict is Verdict.FAILS


def test_orthogonal_kernels_keep_linear_layers_isometric(small):
    claim, (data, judgement) = CLAIMS["orthogonal"], small("orthogonal")
    assert judgement.verdict is Verdict.WITH_LIMITS
    exact = data[(data.activation == "linear") & (data.init == "orthogonal")]
    assert exact.kappa_plus.max() < 1.001
    assert (data[data.activation == "relu"]["rank"] < data[data.activation == "relu"]["size"]).all()
    # Of a tanh layer, by W^T D^2 W of each sample in float64.
    (width, depth, samples), layer = _orthogonal.SIZES["small"], 3
    x = DIGITS.train_x[:samples]
    _, params = initialized(x, width, depth, 10, "tanh", "he", 0)
    z = x.reshape(samples, -1).astype(np.float64)
    for i in range(1, layer + 1):
        kernel = np.asarray(params[f"dense{i}"]["kernel"], np.float64)
        z = np.tanh(z @ kernel)
    values = [np.linalg.svd(kernel * (1 - one**2), compute_uv=False) for one in z]
    here = data[(data.activation == "tanh") & (data.init == "he") & (data.layer == layer)]
    assert here.kappa_plus.item() == pytest.approx(np.median([(v[0] / v[-1]) ** 2 for v in values]), rel=1e-2)
    everywhere = data.assign(kappa_plus=1.0, kappa_q05=1.0, rank=data["size"])
    assert claim.verdict(everywhere).verdict is Verdict.HOLDS
    assert claim.verdict(data.assign(kappa_plus=2.0)).verdict is Verdict.FAILS


def test_skips_bound_kappa_where_branches_are_small(small):
    claim, (data, judgement) = CLAIMS["skips"], small("skips")
    assert judgement.verdict in {Verdict.HOLDS, Verdict.WITH_LIMITS}
    inside = data[data.eps < 1]
    assert len(inside)
    assert (inside.kappa <= 1.001 * ((1 + inside.eps) / (1 - inside.eps)) ** 2).all()
    # The last network is still there: its H_z by the Jacobian of the block itself.
    last = data[(data.kind == "skips, branches x 0.1") & (data.steps == data.steps.max())]
    _, tested = _skips._networks(8, True, 10, (8, 8, 1))
    setting = Setting("small", (0,), DIGITS)
    z = tested.model.layers[0](setting.batch(_skips.SAMPLES)[0])
    sigma = np.linalg.svd(_skips._jacobians(*nnx.split(tested.model.layers[1]), z), compute_uv=False)
    assert last[last.layer == 1].kappa.to_numpy() == pytest.approx((sigma[:, 0] / sigma[:, -1]) ** 2, rel=1e-3)
    assert claim.verdict(data.assign(eps=data.eps.where(data.eps.isna(), 0.0))).verdict is Verdict.FAILS
    tame = data.assign(eps=data.eps.where(data.eps.isna(), 0.5), kappa=2.0)
    assert claim.verdict(tame).verdict is Verdict.HOLDS
    alike = data.assign(kappa_5=2.0)
    assert claim.verdict(alike).verdict is Verdict.FAILS


def test_batch_normalization_evens_the_second_moments(small):
    claim, (data, judgement) = CLAIMS["batch-norm"], small("batch-norm")
    assert judgement.verdict in {Verdict.HOLDS, Verdict.WITH_LIMITS}
    initial = data[data.steps == 0].groupby("kind").spread.median()
    assert initial["batchnorm"] < initial["plain"]
    assert (data.kappa_c <= data.spread * data.kappa_scaled * (1 + 1e-9)).all()
    worse = data.assign(kind=data.kind.map({"plain": "batchnorm", "batchnorm": "plain"}))
    assert claim.verdict(worse).verdict is Verdict.FAILS
    assert claim.verdict(data.assign(kappa_plus=1.0)).verdict is Verdict.WITH_LIMITS


def test_second_moments_are_the_local_hessian_of_a_convolution(dtype):
    z = jax.random.normal(jax.random.key(0), (3, 4, 4, 2), dtype)
    chain = Chain([Block("conv", convolution), Block("sum", lambda params, z: jnp.sum(z, (1, 2)))])
    params = {"conv": {"kernel": jnp.ones((3, 3, 2, 2), dtype), "bias": jnp.zeros(2, dtype)}}
    loss = optax.softmax_cross_entropy_with_integer_labels
    matching = back_match(chain, params, z, jnp.array([0, 1, 1]), loss)
    found = spectrum(local_hessian(matching, "conv", select=lambda path: "kernel" in path), Dense())
    values = np.repeat(np.linalg.eigvalsh(_batch_norm.second_moments(z)), 2)
    assert np.asarray(found.eigenvalues) == pytest.approx(values, abs=1e-5 * values[-1])


def test_signals_follow_the_spectra(small):
    claim, (data, judgement) = CLAIMS["signals"], small("signals")
    assert judgement.verdict is Verdict.HOLDS
    assert data.inside.all()
    kinds = data[data.layer == 1].set_index("kind").measured
    assert kinds["sigmoid, xavier"] < -3 < kinds["relu, he"]
    # By plain reverse mode from below.
    width, samples = _signals.SIZES["small"]
    with jax.enable_x64(True):
        x, y = jnp.asarray(DIGITS.train_x[:samples], jnp.float64), DIGITS.train_y[:samples]
        chain, params = initialized(x, width, 10, 10, "sigmoid", "xavier", 0)
        z = chain.forward(params, x)

        def after(z, first):
            for block in chain.blocks[first:]:
                z = block(params[block.name], z)
            return optax.softmax_cross_entropy_with_integer_labels(z, y).sum()

        lowest, top = (np.linalg.norm(jax.grad(after)(z[b], b), axis=1) for b in (1, 10))
    assert kinds["sigmoid, xavier"] == pytest.approx(np.median(np.log10(lowest / top)), rel=1e-5)
    off = claim.verdict(data.assign(predicted=data.predicted + 2 * data.depth))
    assert off.verdict is Verdict.FAILS
    assert claim.verdict(data.assign(inside=False)).verdict is Verdict.FAILS
