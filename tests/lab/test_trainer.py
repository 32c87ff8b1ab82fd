"""The training loop: against a plain optax loop, and across a kill."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import localhessian as lh
from localhessian.lab import (
    Augmentation,
    Batch,
    Checkpoint,
    Descent,
    Images,
    Network,
    Propagation,
    Trainer,
    algorithm,
    digits,
    nnx_network,
)
from localhessian.lab.comparison import network
from localhessian.lab.comparison._trainer import TEST_BATCH, _step, batch_indices
from localhessian.network import Block, Chain, _per_sample

cross_entropy = optax.softmax_cross_entropy_with_integer_labels
STEPS, BATCH = 12, 8
DATA = digits().take(200, 50)
TANH = network("tanh-1", DATA, width=6)
LABELS = np.zeros(2, np.int32)


@pytest.fixture(scope="module")
def momentum():
    return Trainer(TANH, algorithm("momentum"))


def plain_loop(optimizer, seed, steps):
    """Written out: no part of the harness but the order of the samples."""
    params, _ = TANH.init(jax.random.key(seed))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, y):
        def objective(params):
            u = x.reshape(x.shape[0], -1) @ params["dense1"]["kernel"] + params["dense1"]["bias"][None]
            logits = jnp.tanh(u) @ params["head"]["kernel"] + params["head"]["bias"][None]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, gradient = jax.value_and_grad(objective)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for i in range(steps):
        chosen = batch_indices(seed, i, len(DATA.train_x), BATCH)
        params, state, loss = step(params, state, DATA.train_x[chosen], DATA.train_y[chosen])
        losses.append(float(loss))
    return params, losses


@pytest.mark.relaxed
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("momentum", optax.sgd(0.05, momentum=0.9)), ("sgd", optax.sgd(0.05)), ("adam", optax.adam(0.05))],
)
def test_the_curve_is_that_of_a_plain_optax_loop(name, optimizer, tol):
    state, curve = Trainer(TANH, algorithm(name)).run(DATA, steps=STEPS, batch=BATCH, learning_rate=0.05, seed=3)
    params, losses = plain_loop(optimizer, 3, STEPS)
    np.testing.assert_allclose(curve.losses, losses, rtol=tol.identity)
    for got, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(got, expected, rtol=tol.identity, atol=tol.identity)
    assert not curve.diverged


@pytest.mark.once
def test_a_layer_that_pads_by_more_than_its_window_learns_by_its_gradient(tol):
    """In some programs jaxlib 0.10 computes a wrong one. Squares of what is linear in `w` have it by hand."""
    layer = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1,), padding=[(5, 2)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    head = Block("head", lambda kernel, z: layer(z, kernel).reshape(len(z), -1))
    chain = Chain([Block("in", lambda w, z: w * z), head])
    x, kernel = (np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((2, 2, 3), (4, 3, 2)))
    there = Network("padded", chain, lambda _: ({"in": jnp.ones(()), "head": jnp.asarray(kernel)}, None))
    trainer = Trainer(there, algorithm("sgd"), lambda z, y: 0.5 * (z**2).sum(1))
    state, _ = trainer.run(Images(x, LABELS, x, LABELS), steps=1, batch=2, learning_rate=1.0)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, [(0, 0), (5, 2), (0, 0)]), 4, axis=1)
    outputs = np.einsum("nact,tcd->nad", windows.astype(np.float64), kernel)
    np.testing.assert_allclose(1 - state.params["in"], (outputs**2).sum() / 2, rtol=10 * tol.identity)
    gradient = np.einsum("nact,nad->tcd", windows, outputs) / 2
    np.testing.assert_allclose(kernel - state.params["head"], gradient, rtol=10 * tol.identity, atol=10 * tol.identity)
    # And quickly: a window that is larger than its image has its padding written out.
    step = functools.partial(_step, trainer)
    program = jax.make_jaxpr(step)(state, x, LABELS, np.arange(2), jax.random.key(0), np.float32(1))
    assert ("optimization_barrier" in str(program)) == (jax.default_backend() == "cpu")


@pytest.mark.once
def test_every_sample_is_drawn_once_in_an_epoch():
    first = np.concatenate([batch_indices(0, step, 20, 6) for step in range(3)])
    assert len(set(first.tolist())) == 18
    again = np.concatenate([batch_indices(0, step, 20, 6) for step in range(3, 6)])
    assert first.tolist() != again.tolist()
    assert batch_indices(1, 0, 20, 6).tolist() != batch_indices(0, 0, 20, 6).tolist()


@pytest.mark.once
def test_a_new_rate_and_seed_compile_nothing(momentum, count_compilations):
    momentum.run(DATA, steps=2, batch=BATCH, learning_rate=0.01, seed=0)
    with count_compilations() as seen:
        momentum.run(DATA, steps=3, batch=BATCH, learning_rate=0.1, schedule="cosine", seed=0)
    assert seen.names == []


@pytest.mark.once
def test_accuracy_and_loss_are_those_of_all_samples(momentum, monkeypatch):
    state, curve = momentum.run(DATA, steps=STEPS, batch=BATCH, learning_rate=0.05, evaluations=3)
    assert curve.at.tolist() == [4, 8, 12]
    logits = np.asarray(TANH.logits(state.params, DATA.test_x, None), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(curve.accuracy[-1], (logits.argmax(1) == DATA.test_y).mean(), rtol=1e-6)
    np.testing.assert_allclose(curve.loss[-1], -log_p[np.arange(50), DATA.test_y].mean(), rtol=1e-5)
    assert len(DATA.test_x) < TEST_BATCH
    monkeypatch.setattr("localhessian.lab.comparison._trainer.TEST_BATCH", 17)  # the last batch is not full
    np.testing.assert_allclose(
        momentum.test(state, DATA.test_x, DATA.test_y), (curve.loss[-1], curve.accuracy[-1]), rtol=1e-5
    )


@pytest.mark.once
def test_the_cosine_scales_the_rate(momentum):
    rates = []
    watched = Descent("watched", lambda chain, loss, rate: optax.stateless(_watch(rate, rates)))
    Trainer(TANH, watched).run(DATA, steps=4, batch=BATCH, learning_rate=0.2, schedule="cosine")
    jax.effects_barrier()
    np.testing.assert_allclose(rates, 0.1 * (1 + np.cos(np.pi * np.arange(4) / 4)), rtol=1e-6)


def _watch(rate, rates):
    def update(gradient, params):
        jax.debug.callback(lambda value: rates.append(float(value)), rate, ordered=True)
        return gradient

    return update


@pytest.mark.once
def test_a_run_that_diverges_is_stopped_and_said(momentum, dtype):
    rate = float(jnp.finfo(dtype).max)
    _, curve = momentum.run(DATA, steps=30, batch=BATCH, learning_rate=rate, evaluations=3)
    assert curve.diverged
    assert np.isnan(curve.accuracy[1:]).all()
    assert np.isfinite(curve.accuracy[0])


@pytest.mark.once
def test_propagation_with_gradient_steps_is_sgd():
    network, sgd = digits_network_of(), algorithm("sgd")
    same = Propagation("same", lh.GradientStep)
    settings = {"steps": 5, "batch": BATCH, "learning_rate": 0.1}
    (ours, curve), (theirs, other) = (Trainer(network, how).run(DATA, **settings) for how in (same, sgd))
    np.testing.assert_allclose(curve.losses, other.losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.once
@pytest.mark.relaxed
@pytest.mark.parametrize("name", ["scale-amended", "scale-amended-max-no-momentum", "gauss-newton", "back-matching"])
def test_algorithms_of_ours_learn_and_keep_their_state(name):
    trainer = Trainer(digits_network_of(), algorithm(name))
    state = trainer.start(0)
    amended = name.startswith("scale-amended")
    end, curve = trainer.run(DATA, steps=30, batch=BATCH, learning_rate=0.01 if amended else 1.0)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, end)
    assert curve.factors.shape == (1, 3 if amended else 0)
    assert curve.losses[-5:].mean() < 0.8 * curve.losses[:5].mean()


@pytest.mark.once
@pytest.mark.relaxed
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("scale-amended", {"momentum": 0.9}),
        ("scale-amended-range-mean", {"momentum": 0.9, "scalar": "range_mean"}),
        ("scale-amended-no-momentum", {}),
        ("scale-amended-max-no-momentum", {"scalar": "max"}),
    ],
)
def test_names_of_scale_amended_sgd_are_its_settings(name, settings):
    """One step by the name and by the optimizer; the factors are those in its state."""
    by_hand = Descent("by hand", lambda chain, loss, rate: lh.scale_amended_sgd(chain, loss, rate, **settings))
    (end, curve), (other, _) = (
        Trainer(TANH, how).run(DATA, steps=3, batch=BATCH, learning_rate=0.01, evaluations=2)
        for how in (algorithm(name), by_hand)
    )
    for one, two in zip(jax.tree.leaves(end), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(curve.factors[-1], np.exp(end.optimizer[0].log_factors), rtol=1e-6)
    with pytest.raises(ValueError, match=r"there is no algorithm 'scale-amended-median'.*`-no-momentum`"):
        algorithm("scale-amended-median")


@pytest.mark.once
@pytest.mark.relaxed
def test_nothing_of_the_context_of_a_network_is_tried_for_samples(monkeypatch):
    """Channels may be as many as the batch: each array of statistics would take a trace of the network."""
    tried, belongs = [], _per_sample.belongs_to_samples
    build = lambda rngs: nnx.Sequential(nnx.BatchNorm(20, rngs=rngs), nnx.Linear(20, 3, rngs=rngs))
    small = nnx_network("small", build, jnp.ones((20, 20)))
    params, context = small.start(jax.random.key(0))
    batch = Batch(jnp.ones((20, 20)), jnp.zeros(20, jnp.int32), context, jax.random.key(1))

    def traced(how):
        state = how.init(small, cross_entropy, params)
        jax.eval_shape(lambda params: how.step(small, cross_entropy, params, state, batch, 0.1), params)

    monkeypatch.setattr(_per_sample, "belongs_to_samples", lambda *given: tried.append(given) or belongs(*given))
    traced(algorithm("scale-amended"))
    assert not tried
    traced(Descent("untold", lh.scale_amended_sgd))
    assert tried


@pytest.mark.once
def test_networks_of_the_zoo_by_name():
    small = network("resnet8-by8", DATA)
    assert small.chain.names[0] == "layers.0"
    params, context = small.start(jax.random.key(0))
    assert small.logits(params, DATA.test_x[:3], context).shape == (3, 10)
    large = Images(*(np.zeros((2, 64, 64, 3), np.float32), np.arange(2)) * 2)
    params, _ = jax.eval_shape(network("resnet18-by8", large).init, jax.random.key(0))
    assert next(leaf.shape for leaf in jax.tree.leaves(params["layers.0"]) if leaf.ndim == 4) == (7, 7, 3, 8)
    with pytest.raises(ValueError, match="there is no network 'alexnet': use plain, batchnorm"):
        network("alexnet", DATA)


def digits_network_of():
    return network("tanh-2", DATA, width=12)


class Normalized(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(64, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, momentum=0.5, rngs=rngs)
        self.last = nnx.Linear(5, 10, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.tanh(self.norm(self.first(x.reshape(x.shape[0], -1)))))


@pytest.mark.once
@pytest.mark.relaxed
def test_an_nnx_model_trains_as_by_flax_itself():
    """Losses and the tested accuracy, against nnx and optax in the way that flax's own guide does it."""
    network = nnx_network("normalized", Normalized, DATA.train_x[:BATCH])
    _, curve = Trainer(network, algorithm("momentum")).run(DATA, steps=5, batch=BATCH, learning_rate=0.05, seed=1)

    model = Normalized(nnx.Rngs(jax.random.key(1)))
    optimizer = nnx.Optimizer(model, optax.sgd(0.05, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        loss, gradient = nnx.value_and_grad(lambda m: cross_entropy(m(x), y).mean())(model)
        optimizer.update(model, gradient)
        return loss

    losses = []
    for i in range(5):
        chosen = batch_indices(1, i, len(DATA.train_x), BATCH)
        losses.append(float(step(model, optimizer, DATA.train_x[chosen], DATA.train_y[chosen])))
    np.testing.assert_allclose(curve.losses, losses, rtol=1e-5)
    model.eval()
    loss = cross_entropy(model(DATA.test_x), DATA.test_y).mean()
    np.testing.assert_allclose(curve.loss[-1], loss, rtol=1e-5)


@pytest.mark.once
def test_an_array_in_two_blocks_is_refused(key):
    def fn(params, x):
        return lh.mark(x @ params, "first") @ params

    chain, params, _ = lh.chain_from_function(fn, jnp.eye(3), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="network `tied` uses an array in two blocks"):
        Network("tied", chain, lambda key: (params, None)).start(key)


@pytest.mark.once
def test_settings_that_cannot_be(momentum):
    with pytest.raises(ValueError, match="`batch` must be between 1 and the 200 training samples, got 201"):
        momentum.run(DATA, steps=1, batch=201, learning_rate=0.1)
    with pytest.raises(ValueError, match="`schedule` must be one of constant, cosine, got 'linear'"):
        momentum.run(DATA, steps=1, batch=20, learning_rate=0.1, schedule="linear")


def _noisy(params, z, context):
    return (z.reshape(z.shape[0], -1) @ params) * (1 + 0.1 * jax.random.normal(context, (z.shape[0], 1)))


SCRIPT = """
    import sys
    import test_trainer
    def follow(done, total):
        print(done, flush=True)
    test_trainer.resumable(sys.argv[1], follow)
"""


def resumable(folder, progress=lambda done, total: None):
    """A run with a momentum, an augmentation and a random key as context, so that all of these must be restored."""
    noisy = Network(
        "noisy", Chain([Block("only", _noisy)]), lambda key: ({"only": jax.random.normal(key, (64, 10))}, key)
    )
    trainer = Trainer(noisy, algorithm("momentum"), augment=Augmentation(pad=1, flip=True))
    checkpoint = None if folder is None else Checkpoint(folder, every=10)
    return trainer.run(
        DATA, steps=40, batch=BATCH, learning_rate=0.02, evaluations=4, checkpoint=checkpoint, progress=progress
    )


@pytest.mark.once
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path):
    program = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "run")]
    places = [str(Path(lh.__file__).parents[1]), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) as child:
        for line in child.stdout:
            if line.strip() == "27":
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    whole, expected = resumable(None)
    seen = []
    state, curve = resumable(tmp_path / "run", lambda done, total: seen.append(done))
    assert seen[0] == 21
    for got, bits in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        numbers = jax.random.key_data if jnp.issubdtype(got.dtype, jax.dtypes.prng_key) else np.asarray
        np.testing.assert_array_equal(numbers(got), numbers(bits))
    for name in ("losses", "at", "loss", "accuracy"):
        np.testing.assert_array_equal(getattr(curve, name), getattr(expected, name))
    assert (np.diff(curve.seconds) > 0).all()


@pytest.mark.once
def test_a_checkpoint_of_another_run_is_refused(momentum, tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", every=2)
    momentum.run(DATA, steps=3, batch=BATCH, learning_rate=0.1, checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"is a checkpoint of a run with other settings \(steps, batch, learning rate"):
        momentum.run(DATA, steps=3, batch=BATCH, learning_rate=0.2, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="is a checkpoint of another run"):
        momentum.run(DATA, steps=4, batch=BATCH, learning_rate=0.1, checkpoint=checkpoint)
    checkpoint.remove()
    assert checkpoint.restore(0) is None
