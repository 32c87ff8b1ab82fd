"""Equinox models as chains, unedited."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import localhessian as lh

pytestmark = [pytest.mark.relaxed, pytest.mark.once]

ROWS = networks.drawn(1, 5, 3)


class Block(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.linear, self.norm = eqx.nn.Linear(6, 6, key=key), eqx.nn.LayerNorm(6)
        self.dropout = eqx.nn.Dropout(0.4)

    def __call__(self, x, *, key):
        return x + self.dropout(jax.nn.gelu(self.linear(self.norm(x))), key=key)


class EquinoxNet(eqx.Module):
    stem: eqx.nn.Linear
    blocks: list
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.stem, self.head = eqx.nn.Linear(3, 6, key=keys[0]), eqx.nn.Linear(6, 2, key=keys[1])
        self.blocks = [Block(k) for k in keys[2:]]

    def __call__(self, x, key=None):
        x = jnp.tanh(self.stem(x))
        for i, block in enumerate(self.blocks):
            x = block(x, key=None if key is None else jax.random.fold_in(key, i))
        return self.head(x)


def test_equinox_per_sample(check_cut):
    model = eqx.nn.inference_mode(EquinoxNet(jax.random.key(0)))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    for at, names in [(None, ("stem", "blocks.0", "blocks.1", "blocks.2", "head")), ("blocks.*", None)]:
        cut = lh.chain_from_equinox(model, ROWS, at=at)
        assert cut.chain.names == (names or ("blocks.0", "blocks.1", "blocks.2", "output"))
        check_cut(cut, lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, ROWS)
        assert all(z.shape[0] == 5 for z in jax.jit(cut.chain.forward)(cut.params, ROWS))
    assert type(model.blocks[0]) is Block
    np.testing.assert_array_equal(cut.chain.split(model)["output"]["weight"], model.head.weight)
    combined = eqx.combine(cut.chain.merge(cut.params), model)
    np.testing.assert_array_equal(jax.vmap(combined)(ROWS), jax.vmap(model)(ROWS))


def test_equinox_dropout_keys_and_state(check_cut):
    model = EquinoxNet(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def call(model, x, context):
        keys = jax.random.split(context["key"], x.shape[0])
        return jax.vmap(model)(x, keys), {"key": jax.random.fold_in(context["key"], 1)}

    context = {"key": jax.random.key(7)}
    cut = lh.chain_from_equinox(model, ROWS, call=call, context=context, has_aux=True)
    check_cut(cut, lambda p, x: call(eqx.combine(p, static), x, context)[0], params, ROWS, cut.context)
    after = cut.chain.next_context(cut.params, ROWS, cut.context)
    assert after["key"] == jax.random.fold_in(context["key"], 1)
    with pytest.raises(ValueError, match=re.escape("say by `call(model, x, context)`")):
        lh.chain_from_equinox(model, ROWS, context=context)


def test_equinox_batch_norm_state(check_cut):
    class Net(eqx.Module):
        layers: list
        norm: eqx.nn.BatchNorm

        def __init__(self, key):
            a, b = jax.random.split(key)
            self.layers = [eqx.nn.Linear(3, 4, key=a), eqx.nn.Linear(4, 2, key=b)]
            self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch")

        def __call__(self, x, state):
            x, state = self.norm(self.layers[0](x), state)
            return self.layers[1](jnp.tanh(x)), state

    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def call(model, x, state):
        return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    cut = lh.chain_from_equinox(model, ROWS, call=call, context=state, has_aux=True)
    assert cut.chain.names == ("layers.0", "norm", "layers.1")
    check_cut(cut, lambda p, x: call(eqx.combine(p, static), x, state)[0], params, ROWS, cut.context)
    _, after = call(model, ROWS, state)
    context = cut.chain.next_context(cut.params, ROWS, cut.context)
    for one, two in zip(jax.tree.leaves(context), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


class Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell
    linear: eqx.nn.Linear

    def __init__(self, key):
        self.cell, self.linear = eqx.nn.GRUCell(2, 4, key=key), eqx.nn.Linear(4, 1, key=key)

    def __call__(self, x):
        hidden, _ = jax.lax.scan(lambda h, row: (self.cell(row, h), None), jnp.zeros(4, x.dtype), x)
        return self.linear(hidden)


class Lifted(eqx.Module):
    """Parameters of its own before the first layer."""

    shift: jax.Array
    layers: list

    def __init__(self, key):
        self.shift = jnp.ones((3, 3))
        self.layers = [eqx.nn.Linear(3, 4, key=key), eqx.nn.Linear(4, 2, key=key)]

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](self.shift @ x)))


@pytest.mark.parametrize(
    ("make", "shape", "names"),
    [(Recurrent, (5, 6, 2), ("cell", "linear")), (Lifted, (5, 3), ("stem", "layers.0", "layers.1"))],
)
def test_the_first_block_is_named_by_what_it_begins_with(check_cut, make, shape, names):
    model, x = make(jax.random.key(0)), networks.drawn(1, *shape)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    cut = lh.chain_from_equinox(model, x)
    assert cut.chain.names == names
    check_cut(cut, lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, x)


def test_a_state_that_comes_back_is_no_part_of_the_output():
    model = EquinoxNet(jax.random.key(0))
    key = jax.random.key(2)

    def call(model, x, context):
        return jax.vmap(model)(x, jax.random.split(context, x.shape[0])), jax.random.fold_in(context, 1)

    with pytest.raises(ValueError, match=re.escape("say `has_aux=True`, then it is the next context")):
        lh.chain_from_equinox(model, ROWS, call=call, context=key)
    cut = lh.chain_from_equinox(model, ROWS, call=call, context=key, has_aux=True)
    assert cut.chain.names[-1] == "head"
