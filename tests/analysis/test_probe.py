"""A probe in a training loop: its figures, its cost, its history, and that the training does not notice it."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import xarray

import localhessian as lh
from localhessian.analysis._history import Head, History, Record
from localhessian.analysis._measurement import Entry
from localhessian.analysis._pace import Pace

pytestmark = pytest.mark.once

CASE = networks.mlp(widths=(6, 8, 8, 3), n=12)
RATE = 0.1


@jax.jit
def step(params):
    """Of SGD."""
    gradient = jax.grad(lambda p: CASE.loss(CASE.chain.forward(p, CASE.x)[-1], CASE.y).mean())(params)
    return jax.tree.map(lambda p, g: p - RATE * g, params, gradient)


def train(probe, steps, params=CASE.params, first=0):
    """The metrics of every step, and where it ends."""
    seen = []
    for i in range(first, first + steps):
        seen.append(probe(i, params, CASE.x, CASE.y))
        params = step(params)
    return seen, params


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A probe after ten steps, what it told, and the parameters before every step."""
    path = tmp_path_factory.mktemp("probe") / "run" / "probe.jsonl"
    probe = lh.Probe(CASE.chain, CASE.loss, every=4, budget=None, path=path)
    seen, end = train(probe, 10)
    return probe, seen, end, path


def truth(params, block, wrt):
    """(lambda_max, trace), of an H_z medians over the samples looked at, by dense arithmetic in float64."""
    matching = lh.back_match(CASE.chain, params, CASE.x, CASE.y, CASE.loss)
    samples = None if wrt == "params" else [0, 4, 7, 11]
    dense = np.asarray(lh.local_hessian(matching, block, wrt, samples=samples).to_dense(), np.float64)
    values = np.linalg.eigvalsh(dense)
    return np.median(values[..., -1]), np.median(values.sum(-1))


def test_its_figures_are_those_of_dense_arithmetic(probed):
    probe, seen, _, _ = probed
    assert [metrics is not None for metrics in seen] == [i % 4 == 0 for i in range(10)]
    params = CASE.params
    for i in range(9):
        if seen[i] is not None:
            for block, wrt in itertools.product(CASE.chain.names, ("params", "input")):
                top, trace = truth(params, block, wrt)
                # From below; what has overtaken the old top by less than a tenth may be missed.
                assert 0.9 * top <= seen[i][f"lambda_max/{wrt}/{block}"] <= 1.0001 * top
                row = probe.history.sel(step=i, block=block, wrt=wrt)
                assert abs(seen[i][f"trace/{wrt}/{block}"] - trace) <= 6 * float(row.trace_error) + 1e-4 * trace
                assert float(row.lambda_max) == seen[i][f"lambda_max/{wrt}/{block}"]
            objective = CASE.loss(CASE.chain.forward(params, CASE.x)[-1], CASE.y).mean()
            np.testing.assert_allclose(seen[i]["probe/objective"], objective, rtol=1e-5)
        params = step(params)
    assert all(isinstance(value, float) for value in seen[0].values())


def test_the_training_is_the_same_to_the_bit(probed):
    params = CASE.params
    for _ in range(10):
        params = step(params)
    for got, bits in zip(jax.tree.leaves(probed[2]), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(got, bits)


def test_later_calls_compile_nothing_and_pass_over_other_shapes(probed, count_compilations):
    probe, _, params, _ = probed
    few = CASE.x[:5], CASE.y[:5]
    with count_compilations() as seen:
        probe(20, params, CASE.x, CASE.y)
        assert probe(30, params, *few) is None
    assert seen.names == []
    assert probe.history.step.values.tolist() == [0, 4, 8, 20]


def test_the_history_is_written_as_it_goes(probed):
    probe, _, _, path = probed
    history = probe.history
    assert isinstance(history, xarray.Dataset)
    assert history.lambda_max.dims == ("step", "block", "wrt")
    assert history.block.values.tolist() == list(CASE.chain.names)
    assert history.size.sel(block="layer1", wrt="params") == 72
    xarray.testing.assert_identical(lh.Probe.read(path), history)
    assert repr(probe).startswith("Probe(cheap figures of 6 local Hessians at most, every 4 steps; ")


def test_a_history_goes_on_and_steps_that_come_again_are_replaced(probed, tmp_path):
    probe, _, _, path = probed
    copy = tmp_path / "probe.jsonl"
    copy.write_bytes(path.read_bytes() + b'{"step": 24, "obj')  # killed in the middle of a line
    again = lh.Probe(CASE.chain, CASE.loss, every=4, budget=None, path=copy)
    train(again, 3, first=8)
    assert again.history.step.values.tolist() == [0, 4, 8]
    xarray.testing.assert_identical(lh.Probe.read(copy), again.history)
    xarray.testing.assert_identical(again.history.sel(step=[0, 4]), probe.history.sel(step=[0, 4]))


def test_files_of_something_else_are_refused(probed, tmp_path):
    path = probed[3]
    other = lh.Probe(CASE.chain, CASE.loss, blocks="head", path=path)
    with pytest.raises(ValueError, match=r"`path`: .* is the history of another probe \(params of block `layer0`"):
        other(0, CASE.params, CASE.x, CASE.y)
    head, record, *_ = path.read_text().splitlines()
    misplaced = record.replace('{"0"', '{"77"')
    for text in ("{}", "[1]", "nothing", f'{head}\n{{"step": 1}}', f"{head}\n{misplaced}", "\0"):
        (tmp_path / "broken").write_text(text + "\n")
        with pytest.raises(ValueError, match="is no history of a probe"):
            lh.Probe.read(tmp_path / "broken")
    with pytest.raises(ValueError, match="is a folder"):
        lh.Probe(CASE.chain, CASE.loss, path=tmp_path)
    with pytest.raises(FileNotFoundError):
        lh.Probe.read(tmp_path / "nowhere")


KILLED = """
    import sys
    from test_probe import CASE, lh
    probe = lh.Probe(CASE.chain, CASE.loss, every=1, budget=None, blocks="head", wrt="params", path=sys.argv[1])
    for i in range(10**6):
        probe(i, CASE.params, CASE.x, CASE.y)
        print(i, flush=True)
"""


def test_what_was_told_before_a_kill_is_there(tmp_path):
    path = tmp_path / "probe.jsonl"
    places = [str(Path(lh.__file__).parents[1]), str(Path(__file__).parent), str(Path(networks.__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    program = [sys.executable, "-c", textwrap.dedent(KILLED), str(path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) as child:
        for line in child.stdout:
            if line.strip() == "3":
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    history = lh.Probe.read(path)
    assert history.step.values.tolist()[:4] == [0, 1, 2, 3]
    assert bool(history.lambda_max.sel(wrt="params").notnull().all())


def test_a_first_call_that_is_interrupted_and_made_again_keeps_the_head(tmp_path):
    path, head = tmp_path / "probe.jsonl", Head(("trace",), (Entry("a", "params", "gauss_newton", 4, 8, False, ""),))
    history = History(path)
    for _ in range(2):
        history.begin(head)
    history.add(Record(3, 0.5, 1.0, 0.0, values={0: {"trace": 2.0}}))
    assert float(lh.Probe.read(path).trace.squeeze()) == 2.0


def test_a_disk_that_is_full_leaves_whole_lines(tmp_path, monkeypatch):
    history = History(tmp_path / "probe.jsonl")
    history.begin(Head(("trace",), (Entry("a", "params", "gauss_newton", 4, 8, False, ""),)))

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            history.add(Record(1, 0.5, 1.0, 0.0, values={0: {"trace": 9.0}}))
    history.add(Record(2, 0.5, 1.0, 0.0, values={0: {"trace": 2.0}}))
    assert lh.Probe.read(history.path).step.values.tolist() == [2]


def test_numbers_that_are_not_finite_are_told_and_end_no_training(probed):
    probe = probed[0]
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, CASE.params)
    metrics = probe(40, broken, CASE.x, CASE.y)
    assert set(metrics) == {"probe/seconds", "probe/share"}
    last = probe.history.sel(step=40)
    assert set(np.unique(last.status)) == {int(lh.Status.NON_FINITE)}
    assert "not finite" in str(last.note.values)
    assert probe(50, CASE.params, CASE.x, CASE.y)["lambda_max/params/head"] > 0


def test_a_model_in_its_own_layout_gives_the_same(key):
    """A whole module, whose leaves are functions too."""
    model = eqx.nn.MLP(6, 3, 4, 1, jnp.tanh, key=key)
    chain, params, context = lh.chain_from_equinox(model, CASE.x)
    told = [
        lh.Probe(chain, CASE.loss, wrt="params", key=key)(0, given, CASE.x, CASE.y, context)
        for given in (params, model)
    ]
    of_time = {"probe/seconds", "probe/first_seconds"}
    assert {k: v for k, v in told[0].items() if k not in of_time} == {
        k: v for k, v in told[1].items() if k not in of_time
    }
    with pytest.raises(ValueError, match="as `params`"):
        lh.Probe(chain, CASE.loss)(0, {"else": 1.0}, CASE.x, CASE.y)


def test_full_figures_are_those_of_measure(count_compilations, monkeypatch):
    probe = lh.Probe(CASE.chain, CASE.loss, every=1, figures="full", blocks=("layer1", "head"), budget=None)
    timed = []
    monkeypatch.setattr(Pace, "forget", lambda pace, job: timed.append(job))
    probe(0, CASE.params, CASE.x, CASE.y)
    # What a first time takes, with its compilation, is expected of no later one.
    assert len(timed) == 5  # of back-matching, and of two sides of two blocks
    moved = step(CASE.params)
    with count_compilations() as seen:
        assert probe(1, moved, CASE.x, CASE.y)["kappa_plus/params/layer1"] > 1
    assert seen.names == []
    found = lh.measure(CASE.chain, CASE.params, CASE.x, CASE.y, CASE.loss, blocks="layer1", wrt="params")
    expected = found["layer1", "params"]
    row = probe.history.sel(block="layer1", wrt="params", step=0)
    for name in ("kappa_plus", "rank", "kappa_q05", "trace", "lambda_max"):
        np.testing.assert_allclose(float(row[name]), float(getattr(expected, name)), rtol=1e-6)


def test_traced_parameters_are_refused():
    probe = lh.Probe(CASE.chain, CASE.loss)
    with pytest.raises(ValueError, match=r"call a probe between compiled steps, outside of `jax.jit`"):
        jax.jit(lambda params: probe(0, params, CASE.x, CASE.y))(CASE.params)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 3.0])
def test_the_budget_holds_whatever_a_part_costs(seconds):
    """A loop of 0.1 s a step, 20 parts of so many seconds each, setup included: simulated."""
    pace, now, queue, taken = Pace(0.05), 0.0, list(range(20)), []
    for part in ["setup", *queue]:
        pace.took(part, seconds)
    pace.start(now)
    for _ in range(20_000):
        now += 0.1
        if pace.allowance(now) >= pace.needed("setup", queue):
            begun, allowed = now, pace.allowance(now)
            now += seconds
            while now - begun + pace.cost(queue[0]) <= allowed:
                now += seconds
                taken.append(queue[0])
                queue.append(queue.pop(0))
                if len(taken) % 20 == 0:
                    break
            pace.spent += now - begun
            assert pace.share(now) <= 0.05 + 1e-9
    # The budget is used but for what a measurement keeps in hand, at least half for parts, and every part has its turn.
    assert pace.spent >= 0.05 * 2000 - 5 * seconds
    assert len(taken) * seconds >= 0.499 * pace.spent
    assert max(map(taken.count, range(20))) - min(map(taken.count, range(20))) <= 1


def test_blocks_that_do_not_fit_come_in_turn(monkeypatch):
    """By a clock of our own: 0.2 s a step, 1 s for each reading between two others inside of the probe."""
    now = [0.0]

    def clock():
        now[0] += 1.0 if inside[0] else 0.0
        return now[0]

    inside = [True]
    monkeypatch.setattr("localhessian.analysis._probe.clock", clock)
    probe = lh.Probe(CASE.chain, CASE.loss, every=10, budget=0.25, wrt="params")
    told = []
    for i in range(400):
        inside[0] = True
        told.append(probe(i, CASE.params, CASE.x, CASE.y))
        inside[0] = False
        now[0] += 0.2
    history = probe.history
    counts = history.lambda_max.sel(wrt="params").notnull().sum("step").values
    assert history.sizes["step"] < 40  # stretched
    assert counts.min() >= 2
    assert counts.max() - counts.min() <= 1
    assert float(history.share[-1]) <= 0.25 + 0.1  # the clock runs on while the last record is made


def test_metrics_go_to_a_file_of_json_lines(tmp_path, probed):
    with open(tmp_path / "metrics.jsonl", "w", encoding="utf-8") as file:
        for i, metrics in enumerate(probed[1]):
            if metrics is not None:
                file.write(json.dumps({"step": i, **metrics}, allow_nan=False) + "\n")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": i, **probed[1][i]} for i in (0, 4, 8)]


def test_metrics_go_to_tensorboard(tmp_path, probed):
    """Read back from the file of events: each is eight bytes of length, four of a checksum, the event, four more."""
    tensorboard = pytest.importorskip("tensorboardX")
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        for i, metrics in enumerate(probed[1]):
            for name, value in (metrics or {}).items():
                writer.add_scalar(name, value, i)
    (path,) = tmp_path.iterdir()
    data, seen, at = path.read_bytes(), {}, 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        event = tensorboard.proto.event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        seen |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        at += size + 16
    told = {(i, name): value for i, metrics in enumerate(probed[1]) for name, value in (metrics or {}).items()}
    assert set(seen) == set(told)
    np.testing.assert_allclose([seen[name] for name in told], list(told.values()), rtol=1e-6)  # of float32


def test_settings_that_cannot_be(tmp_path):
    for given, message in (
        ({"every": 0}, "`every` must be a whole number of at least 1"),
        ({"budget": 1.5}, "`budget` must lie between 0 and 1"),
        ({"figures": "most"}, "`figures` must be 'cheap' or 'full', got 'most'"),
        ({"samples_per_block": 0}, "`samples_per_block`"),
    ):
        with pytest.raises(ValueError, match=message):
            lh.Probe(CASE.chain, CASE.loss, **given)
    tokens = networks.transformer()
    probe = lh.Probe(tokens.chain, tokens.loss, blocks="embed", wrt="input")
    with pytest.raises(ValueError, match="H_z does not exist"):
        probe(0, tokens.params, tokens.x, tokens.y)
