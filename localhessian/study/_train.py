"""A short training loop for the demonstration."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax

from localhessian._types import Array
from localhessian.network import Chain
from localhessian.study._data import Images


class Trained(NamedTuple):
    """Parameters after training, with the losses on the way and the accuracy on the test images."""

    params: dict
    losses: np.ndarray
    accuracy: float


def train(
    chain: Chain,
    params: dict,
    data: Images,
    *,
    steps: int = 300,
    batch: int = 64,
    learning_rate: float = 0.05,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trained:
    """SGD with momentum 0.9 on the cross-entropy, by a host loop over one compiled step.

    Batch normalization uses the statistics of the batch at hand, in testing too (all test images in one batch).

    Args:
        chain: Ends at logits.
        params: Where it starts; not changed.
        data: Images and labels.
        steps: Gradient steps.
        batch: Images of each step, drawn without replacement in each epoch.
        learning_rate: Constant.
        seed: Of the order of the images.
        progress: Called with (done, total).
    """
    optimizer = optax.sgd(learning_rate, momentum=0.9)

    @jax.jit
    def step(params, state, x, y):
        loss, gradient = jax.value_and_grad(lambda params: _loss(chain, params, x, y))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    random, order = np.random.default_rng(seed), np.empty(0, int)
    for done in range(steps):
        if len(order) < batch:
            order = random.permutation(len(data.train_x))
        chosen, order = order[:batch], order[batch:]
        params, state, loss = step(params, state, data.train_x[chosen], data.train_y[chosen])
        losses.append(loss)
        progress(done + 1, steps)
    logits = jax.jit(chain.forward)(params, data.test_x)[-1]
    accuracy = float(np.mean(np.argmax(np.asarray(logits), axis=1) == data.test_y))
    return Trained(params, np.asarray(losses, np.float64), accuracy)


def _loss(chain: Chain, params: dict, x: Array, y: Array) -> Array:
    logits = chain.forward(params, x)[-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
