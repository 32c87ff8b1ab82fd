"""Networks on their way through training."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from localhessian.lab.claims._claim import Setting
from localhessian.lab.comparison import State, Trainer, algorithm
from localhessian.lab.zoo import Network

TRAINED, TESTED = 10_000, 500
"""Images at most."""


def stages(
    network: Network,
    setting: Setting,
    seed: int,
    steps: tuple[int, ...],
    *,
    rate: float,
    start: Callable[[State], State] = lambda state: state,
    batch: int = 64,
) -> Iterator[tuple[int, State, float]]:
    """The state at each of some numbers of steps of SGD with momentum 0.9, at a constant rate.

    Args:
        network: What is trained.
        setting: On which images; all are tested on at each stage.
        seed: Of initialization and order.
        steps: Ascending; 0 is the initialization.
        rate: The learning rate.
        start: Changes the initial state.
        batch: Images of a step.

    Yields:
        Steps done, the state, and its accuracy on the test images.
    """
    trainer = Trainer(network, algorithm("momentum"), augment=setting.augment)
    state, done = start(trainer.start(seed)), 0
    for stage, at in enumerate(steps):
        if at > done:
            order = seed + 1000 * stage
            state, _ = trainer.run(
                setting.images, steps=at - done, batch=batch, learning_rate=rate, seed=order, start=state
            )
            done = at
        yield done, state, trainer.test(state, setting.images.test_x, setting.images.test_y)[1]


def reduced(setting: Setting) -> Setting:
    """With at most `TRAINED` images, and of 32 x 32 pixels the means of 2 x 2, so that H_z can be decomposed whole."""
    images = setting.images
    part = images.take(min(TRAINED, len(images.train_x)), min(TESTED, len(images.test_x)))
    halved = part._replace(train_x=_halved(part.train_x), test_x=_halved(part.test_x))
    return dataclasses.replace(setting, images=halved)


def _halved(x: np.ndarray) -> np.ndarray:
    if x.shape[1] < 32:
        return x
    return x.reshape(len(x), 16, 2, 16, 2, -1).mean((2, 4)).round().astype(x.dtype)
