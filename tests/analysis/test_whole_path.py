"""The whole path on a model of linen and one of equinox: cut, identities, analyze, a training step, analyze again."""

import equinox as eqx
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from flax import linen as nn

import localhessian as lh

pytestmark = [pytest.mark.relaxed, pytest.mark.once]

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6, 6, 2)), jnp.result_type(float))
LABELS = jnp.arange(6) % 3
loss = optax.softmax_cross_entropy_with_integer_labels


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
        x = x + nn.tanh(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(x.mean((1, 2)))


def of_linen():
    model = Linen()
    variables = model.init(jax.random.key(0), IMAGES, train=False)
    call = lambda model, x: model(x, train=True)
    return lh.chain_from_linen(model, variables, IMAGES, at=["BatchNorm_0"], call=call)


class Equinox(eqx.Module):
    layers: list

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        convolutions = [eqx.nn.Conv2d(2, 4, 3, padding=1, key=keys[0]), eqx.nn.Conv2d(4, 4, 3, padding=1, key=keys[1])]
        self.layers = [*convolutions, eqx.nn.Linear(4, 3, key=keys[2])]

    def __call__(self, x):
        first, second, head = self.layers
        x = jax.nn.relu(first(jnp.moveaxis(x, -1, 0)))
        x = x + jnp.tanh(second(x))
        return head(x.mean((1, 2)))


def of_equinox():
    return lh.chain_from_equinox(Equinox(jax.random.key(0)), IMAGES)


@pytest.mark.parametrize("make", networks.waiting((of_linen, of_equinox), (of_linen,)))
def test_whole_path(make, count_compilations):
    chain, params, context = make()
    lh.check_identities(chain, params, IMAGES, LABELS, loss, context)
    chosen = chain.names[1:2]
    first = lh.analyze(chain, params, IMAGES, LABELS, loss, context, blocks=chosen, samples_per_block=2)
    assert all(row.converged or row.note for row in first.rows)
    optimizer = lh.scale_amended_sgd(chain, loss, 0.1)

    @jax.jit
    def step(model_params, state, context):
        def objective(model_params):
            return loss(chain.forward(chain.split(model_params), IMAGES, context)[-1], LABELS).mean()

        value, grads = jax.value_and_grad(objective)(model_params)
        updates, state = optimizer.update(grads, state, model_params, x=IMAGES, y=LABELS, context=context)
        return optax.apply_updates(model_params, updates), state, value

    model_params = chain.merge(params)
    state = optimizer.init(model_params)
    losses = []
    for _ in range(5):
        model_params, state, value = step(model_params, state, context)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    moved, after = chain.split(model_params), chain.next_context(params, IMAGES, context)
    with count_compilations() as seen:
        second = lh.analyze(chain, moved, IMAGES, LABELS, loss, after, blocks=chosen, samples_per_block=2)
    assert seen.names == []
    assert first.rows[0].lambda_max != second.rows[0].lambda_max
