"""Tied arrays in training: `propagate` with gradient solvers is SGD on the model, whatever framework it comes from."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import localhessian as lh

RATE, STEPS = 0.3, 3
TOKENS = jnp.arange(12).reshape(6, 2) % 5
TARGETS = (TOKENS + 1) % 5


def loss(logits, tokens):
    return networks.token_cross_entropy(logits, tokens)


def marked():
    """An embedding that is also the head, between them a layer and a block without parameters."""

    def model(params, tokens):
        h = lh.mark(params["E"][tokens], "embed")
        h = lh.mark(jnp.tanh(h @ params["W"]), "middle")
        h = lh.mark(jnp.sin(h), "sine")
        return h @ params["E"].T

    rng = np.random.default_rng(0)
    params = {"E": networks.normal(rng, 5, 3), "W": networks.normal(rng, 3, 3)}
    return lh.chain_from_function(model, params, TOKENS), model, params


def from_nnx():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed, self.middle = nnx.Embed(5, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, tokens):
            return self.embed.attend(jnp.tanh(self.middle(self.embed(tokens))))

    model = Model(nnx.Rngs(0))
    graph, params = nnx.split(model)
    return lh.chain_from_nnx(model, TOKENS), lambda params, x: nnx.merge(graph, params)(x), params


def from_linen():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(5, 3, name="embed")
            return embed.attend(jnp.tanh(nn.Dense(3, name="middle")(embed(tokens))))

    model = Model()
    variables = model.init(jax.random.key(0), TOKENS)
    cut = lh.chain_from_linen(model, variables, TOKENS)
    return cut, lambda params, x: model.apply({"params": params}, x), variables["params"]


def from_equinox():
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        shared: eqx.nn.Shared
        middle: eqx.nn.Linear

        def __init__(self, key):
            embed, head = eqx.nn.Embedding(5, 3, key=key), eqx.nn.Linear(3, 5, use_bias=False, key=key)
            self.shared = eqx.nn.Shared((embed, head), lambda pair: pair[1].weight, lambda pair: pair[0].weight)
            self.middle = eqx.nn.Linear(3, 3, key=key)

        def __call__(self, tokens):
            embed, head = self.shared()
            return jax.vmap(head)(jnp.tanh(jax.vmap(self.middle)(jax.vmap(embed)(tokens))))

    model = Model(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    cut = lh.chain_from_equinox(model, TOKENS, at="middle")
    return cut, lambda params, x: jax.vmap(eqx.combine(params, static))(x), params


def sgd_on_the_model(model, params):
    optimizer = optax.sgd(RATE)

    @jax.jit
    def step(params):
        grads = jax.grad(lambda params: loss(model(params, TOKENS), TARGETS).mean())(params)
        return optax.apply_updates(params, optimizer.update(grads, optimizer.init(params), params)[0])

    for _ in range(STEPS):
        params = step(params)
    return params


def rounding(leaf):
    """Of a few steps of size 1, in the arithmetic of the parameters (flax's are float32 under x64 too)."""
    return 100 * float(jnp.finfo(leaf.dtype).eps)


@pytest.mark.relaxed
@pytest.mark.once
@pytest.mark.parametrize("make", [marked, from_nnx, from_linen, from_equinox])
def test_propagation_with_gradient_solvers_is_sgd_on_the_model(make):
    """Jitted and scanned; what comes out has the structure that went in, and merging it back loses nothing."""
    cut, model, params = make()
    assert len(jax.tree.leaves(cut.params)) > len(jax.tree.leaves(params))
    solvers = lh.GradientStep(RATE), lh.GradientStep(1.0)

    def step(carry, _):
        blocks, state = carry
        new, info = lh.propagate(cut.chain, blocks, TOKENS, TARGETS, loss, *solvers, cut.context, state)
        return (new, info.state), info.loss

    start = (cut.params, lh.initial_state(cut.chain, cut.params, *solvers))
    (scanned, _), losses = jax.jit(lambda start: jax.lax.scan(step, start, length=STEPS))(start)
    assert jax.tree.structure(scanned) == jax.tree.structure(cut.params)
    truth = sgd_on_the_model(model, params)
    merged, back = cut.chain.merge(scanned), cut.chain.split(truth)
    for ours, theirs in zip(jax.tree.leaves(merged), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=rounding(ours))
    for ours, theirs in zip(jax.tree.leaves(scanned), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=rounding(ours))
    cut.chain.check_tied(scanned)
    assert float(losses[-1]) < float(losses[0])


@pytest.mark.once
def test_other_solvers_sum_the_steps_of_the_uses():
    """Each use is solved by itself, as on a chain that does not know that they belong together."""
    cut, _, _ = marked()
    apart = lh.Chain([lh.Block(block.name, block.apply) for block in cut.chain.blocks])
    solver = lh.GaussNewton(damping=1.0, iterations=4)

    def step(chain):
        return jax.jit(lambda p: lh.propagate(chain, p, TOKENS, TARGETS, loss, solver, context=cut.context)[0])(
            cut.params
        )

    tied, untied = step(cut.chain), step(apart)
    by_hand = cut.chain.sum_tied(jax.tree.map(jnp.subtract, untied, cut.params))
    one, two = (jax.tree.leaves(tree["embed"])[0] for tree in (tied, cut.params))
    uses = [jax.tree.leaves(untied[name])[0] - two for name in ("embed", "output")]
    np.testing.assert_allclose(one - two, sum(uses), atol=1e-6)
    np.testing.assert_allclose(one - two, jax.tree.leaves(by_hand["output"])[0], atol=1e-6)
    assert min(float(jnp.abs(use).max()) for use in uses) > 1e-3
    cut.chain.check_tied(tied)


def test_uses_that_differ_are_refused():
    cut, _, _ = marked()
    params = {**cut.params, "output": jax.tree.map(lambda leaf: 2 * leaf, cut.params["output"])}
    with pytest.raises(ValueError, match="blocks `embed` and `output` use one parameter of the model, `E`, and"):
        lh.propagate(cut.chain, params, TOKENS, TARGETS, loss)


def test_the_structure_that_came_in_goes_out():
    """A block without parameters stays out of the dictionary, or as empty as it was; other leaves stay themselves."""
    blocks = [
        lh.Block("a", lambda w, z: z * w["x"][None]),
        lh.Block("b", lambda _, z: jnp.sin(z)),
        lh.Block("c", lambda w, z: z * w[None]),
    ]
    chain, x = lh.Chain(blocks), jnp.ones((2, 1))
    whole = {"c": jnp.ones(1), "a": {"x": jnp.ones(1), "count": jnp.arange(3)}}
    for params in (whole, {**whole, "b": ()}, {**whole, "b": {}}):
        new, _ = lh.propagate(chain, params, x, x, networks.squared_error)
        assert jax.tree.structure(new) == jax.tree.structure(params)
        assert jax.tree.map(lambda leaf: leaf.dtype, new) == jax.tree.map(lambda leaf: leaf.dtype, params)
        np.testing.assert_array_equal(new["a"]["count"], jnp.arange(3))
        assert float(new["a"]["x"][0]) != 1
