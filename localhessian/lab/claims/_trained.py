"""Networks on their way through training."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from localhessian.lab._data import IMAGE_AXES
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


def reduced(setting: Setting, side: int) -> Setting:
    """With at most `TRAINED` images, and those averaged down to `side` pixels: local Hessians are decomposed whole."""
    images = setting.images
    part = images.take(min(TRAINED, len(images.train_x)), min(TESTED, len(images.test_x)))
    smaller = part._replace(train_x=_averaged(part.train_x, side), test_x=_averaged(part.test_x, side))
    return dataclasses.replace(setting, images=smaller)


def _averaged(x: np.ndarray, side: int) -> np.ndarray:
    if x.ndim != IMAGE_AXES:
        return x
    n, height, width, channels = x.shape
    if height <= side or height % side or width != height:
        return x
    by = height // side
    means = x.reshape(n, side, by, side, by, channels).mean((2, 4))
    return means.round().astype(x.dtype) if x.dtype == np.uint8 else means.astype(x.dtype)
