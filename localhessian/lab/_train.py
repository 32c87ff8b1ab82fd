"""Training without ceremony, for the demonstration: the loop of the comparisons with one algorithm."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from localhessian._brief import by_value
from localhessian.lab._data import Images
from localhessian.lab.comparison import Network, Trainer, algorithm
from localhessian.network import Chain


@by_value
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

    Batch normalization uses the statistics of the batch at hand, in testing too (up to 1,000 test images in one batch).

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
    trainer = Trainer(Network("network", chain, lambda key: (params, None)), algorithm("momentum"))
    state, curve = trainer.run(
        data, steps=steps, batch=batch, learning_rate=learning_rate, seed=seed, progress=progress
    )
    return Trained(state.params, curve.losses, float(curve.accuracy[-1]))
