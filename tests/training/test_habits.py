"""Scale-amended SGD where users put it: flax's optimizer, wrappers of optax, either layout of the parameters."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from flax import nnx

import localhessian as lh

X, Y = jax.random.normal(jax.random.key(3), (8, 4), jnp.float32), jnp.arange(8) % 3
loss = networks.cross_entropy


class Net(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.tanh(self.norm(self.a(x))))


@pytest.fixture(scope="module")
def cut():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return lh.chain_from_nnx(Net(nnx.Rngs(0)), X)


def data(cut):
    return {"x": X, "y": Y, "context": cut.context, "key": jax.random.key(5)}


def gradient(cut):
    return jax.jit(jax.grad(lambda p: loss(cut.chain.forward(p, X, cut.context)[-1], Y).mean()))(cut.params)


def plain_update(cut, **settings):
    """One update in the layout of the blocks, with nothing around it."""
    optimizer = lh.scale_amended_sgd(cut.chain, loss, 0.1, **settings)
    grads = gradient(cut)
    return grads, jax.jit(optimizer.update)(grads, optimizer.init(cut.params), cut.params, **data(cut))[0]


def near(one, two, rtol=1e-4):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


@pytest.mark.relaxed
@pytest.mark.once
def test_nnx_optimizer_takes_the_steps_of_the_blocks(cut):
    """Its parameters come without the variables around them; the statistics of the norm are context."""
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, lh.scale_amended_sgd(cut.chain, loss, 0.1), wrt=nnx.Param)

    def objective(model):
        return loss(model(X), Y).mean()

    before, context = nnx.state(model, nnx.Param), nnx.state(model, nnx.Not(nnx.Param))
    before = jax.tree.map(jnp.copy, before)
    given = {**data(cut), "context": jax.tree.map(jnp.copy, context)}
    grads = nnx.grad(objective)(model)
    optimizer.update(model, grads, **given)
    moved = jax.tree.map(jnp.subtract, cut.chain.split(nnx.state(model, nnx.Param)), cut.chain.split(before))
    near(moved, plain_update(cut)[1])


@pytest.mark.relaxed
@pytest.mark.once
def test_wrappers_of_optax_leave_the_update_what_it_is(cut):
    """Each in a compiled step, against the update with nothing around it."""
    grads, expected = plain_update(cut)
    amended = lh.scale_amended_sgd(cut.chain, loss, 0.1)
    inject = optax.inject_hyperparams(lh.scale_amended_sgd, static_args=("chain", "loss"))
    injected = inject(chain=cut.chain, loss=loss, learning_rate=0.1)
    scheduled = inject(chain=cut.chain, loss=loss, learning_rate=lambda step: 0.1 + 0.0 * step, damping=1e-3)
    only = optax.inject_hyperparams(lh.scale_by_local_hessian, static_args=("chain", "loss"))
    wrapped = {
        "inject": injected,
        "inject a schedule": scheduled,
        "inject the damping": optax.chain(only(chain=cut.chain, loss=loss, damping=1e-3), optax.scale(-0.1)),
        "schedule": lh.scale_amended_sgd(cut.chain, loss, optax.constant_schedule(0.1)),
        "finite": optax.apply_if_finite(amended, 3),
        "accumulated": optax.MultiSteps(amended, 1),
        "clipped": optax.chain(optax.clip_by_global_norm(1e6), amended),
        "averaged": optax.chain(amended, optax.ema(0.0)),
        "partition after it": optax.chain(
            lh.scale_by_local_hessian(cut.chain, loss),
            optax.partition({"s": optax.sgd(0.1)}, dict.fromkeys(cut.params, "s")),
        ),
    }

    @jax.jit
    def all_of_them(grads, params):
        return {
            name: optimizer.update(grads, optimizer.init(params), params, **data(cut))[0]
            for name, optimizer in wrapped.items()
        }

    for found in all_of_them(grads, cut.params).values():
        near(found, expected)
    assert float(injected.init(cut.params).hyperparams["learning_rate"]) == pytest.approx(0.1)


@pytest.mark.relaxed
@pytest.mark.once
@pytest.mark.parametrize("of_model", [False, True])
def test_outside_of_jit_an_operation_is_no_program_of_its_own(cut, of_model, count_compilations):
    grads, expected = plain_update(cut)
    layout = (lambda tree: cut.chain.merge(tree, tied="sum")) if of_model else lambda tree: tree
    params, given, optimizer = layout(cut.params), layout(grads), lh.scale_by_local_hessian(cut.chain, loss)
    state, where = optimizer.init(params), data(cut)
    jax.clear_caches()
    with count_compilations() as seen:
        updates, _ = optimizer.update(given, state, params, **where)
    assert not seen.operations & {"add", "integer_pow", "maximum", "mul", "multiply", "true_divide", "_reduce_sum"}
    near(cut.chain.split(updates) if of_model else updates, jax.tree.map(lambda leaf: -10 * leaf, expected))


@pytest.mark.relaxed
@pytest.mark.once
@pytest.mark.parametrize("scalar", ["mean", "max"])
def test_every_layout_gives_the_same_step(cut, scalar):
    """The blocks', the model's as a state, without its variables, and as a plain dictionary; in and out alike."""
    grads, expected = plain_update(cut, scalar=scalar)
    optimizer = lh.scale_amended_sgd(cut.chain, loss, 0.1, scalar=scalar)
    state = cut.chain.merge(cut.params)
    of_model = cut.chain.merge(grads, tied="sum")
    for change in (lambda tree: tree, nnx.as_pure, nnx.to_pure_dict):
        params, given = change(state), change(of_model)
        updates, _ = jax.jit(optimizer.update)(given, optimizer.init(params), params, **data(cut))
        assert jax.tree.structure(updates) == jax.tree.structure(given)
        near(cut.chain.split(updates), expected)


@pytest.mark.relaxed
@pytest.mark.once
def test_equinox_models_and_gradients():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 3, width_size=5, depth=1, key=jax.random.key(0))
    chain, blocks, _ = lh.chain_from_equinox(model, X)
    optimizer = lh.scale_amended_sgd(chain, loss, 0.1)
    params = eqx.filter(model, eqx.is_inexact_array)
    grads = eqx.filter_grad(lambda model: loss(jax.vmap(model)(X), Y).mean())(model)
    updates, _ = optimizer.update(grads, optimizer.init(params), params, x=X, y=Y)
    moved = eqx.apply_updates(model, updates)
    expected, _ = optimizer.update(chain.split(grads), optimizer.init(blocks), blocks, x=X, y=Y)
    near(chain.split(updates), expected)
    assert float(loss(jax.vmap(moved)(X), Y).mean()) < float(loss(jax.vmap(model)(X), Y).mean())


@pytest.mark.once
def test_tied_uses_get_the_sum_of_their_scaled_gradients():
    """In the layout of the blocks each use has its own gradient and factor."""

    def model(params, tokens):
        h = lh.mark(params["E"][tokens], "embed")
        h = lh.mark(jnp.tanh(h @ params["W"]), "middle")
        return h @ params["E"].T

    tokens = jnp.arange(6) % 5
    rng = np.random.default_rng(0)
    params = {"E": networks.normal(rng, 5, 3), "W": networks.normal(rng, 3, 3)}
    chain, blocks, context = lh.chain_from_function(model, params, tokens)
    grads = jax.jit(jax.grad(lambda p: loss(chain.forward(p, tokens, context)[-1], tokens).mean()))(blocks)
    optimizer = lh.scale_by_local_hessian(chain, loss)
    updates, state = optimizer.update(grads, optimizer.init(blocks), blocks, x=tokens, y=tokens, context=context)
    factors = state.factors(chain)
    one, two = (factors[name] * jax.tree.leaves(grads[name])[0] for name in ("embed", "output"))
    for name in ("embed", "output"):
        np.testing.assert_allclose(jax.tree.leaves(updates[name])[0], one + two, rtol=1e-4, atol=1e-6)


@pytest.mark.refuses
@pytest.mark.relaxed
@pytest.mark.once
def test_what_cannot_work_is_said(cut):
    amended = lh.scale_amended_sgd(cut.chain, loss, 0.1)
    labels = {name: "amended" if name == "a" else "plain" for name in cut.params}
    with pytest.raises(ValueError, match=r"a mask .* hides some"):
        optax.partition({"amended": amended, "plain": optax.sgd(0.1)}, labels).init(cut.params)
    with pytest.raises(ValueError, match=r"a mask .* hides some"):
        optax.masked(amended, {name: name == "a" for name in cut.params}).init(cut.params)
    with pytest.raises(ValueError, match="must be a dict of the blocks' names"):
        amended.init({"other": jnp.ones(3)})
    injected = optax.inject_hyperparams(lh.scale_amended_sgd, static_args=("chain", "loss"))
    optimizer = injected(chain=cut.chain, loss=loss, learning_rate=0.1, samples=4)
    with pytest.raises(ValueError, match=r"`samples` must be a whole number .*static_args"):
        jax.jit(optimizer.update)(gradient(cut), optimizer.init(cut.params), cut.params, **data(cut))
    for rate in (None, "fast", float("nan"), -1.0):
        with pytest.raises(ValueError, match="`learning_rate` must be a finite number"):
            lh.scale_amended_sgd(cut.chain, loss, rate)
    with pytest.raises(ValueError, match="`loss` must be a function"):
        lh.scale_by_local_hessian(cut.chain, None)
    mean = lh.scale_by_local_hessian(cut.chain, lambda z, y: loss(z, y).mean())
    with pytest.raises(ValueError, match="`loss` must return one loss for each of the 8 samples"):
        mean.update(gradient(cut), mean.init(cut.params), cut.params, x=X, y=Y, context=cut.context)
