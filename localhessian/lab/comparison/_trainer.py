"""One training loop for every algorithm: a host loop over one compiled step, resumable at any step."""

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from localhessian._brief import by_value
from localhessian._programs import program_text
from localhessian._types import Array, Context, Key, Loss, Params, Scalar
from localhessian.lab._augment import Augmentation
from localhessian.lab._data import Images
from localhessian.lab.comparison._algorithm import Algorithm, Batch
from localhessian.lab.comparison._checkpoint import Checkpoint
from localhessian.lab.zoo import Network
from localhessian.linalg import quickly

PLAIN = Augmentation()
"""Samples as they are; `uint8` as x / 255."""
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
}
"""Factor of the learning rate, by the share of the steps that are done."""
TEST_BATCH = 1000
"""Samples tested at once; the last batch is filled up with samples that do not count."""


@by_value
class State(NamedTuple):
    """All that a step changes."""

    params: dict[str, Params]
    optimizer: Any
    context: Context


@by_value
class Curve(NamedTuple):
    """What was seen on the way; NaN where a diverged run was stopped."""

    losses: np.ndarray
    """Of the batch of each step, before it, shape `(steps,)`."""
    at: np.ndarray
    """Steps done at each evaluation, shape `(e,)`."""
    loss: np.ndarray
    """Mean loss of the testing part, shape `(e,)`."""
    accuracy: np.ndarray
    """On the testing part, shape `(e,)`."""
    seconds: np.ndarray
    """Spent on training steps, without compilation and testing, shape `(e,)`."""
    factors: np.ndarray = np.zeros(0)
    """What scale-amended SGD multiplied the gradient of each block by, in the order of the chain, shape `(e, B)`; of
    other algorithms `(e, 0)`."""

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""
        return not bool(np.isfinite(self.losses).all() and np.isfinite(self.loss).all())


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains one network by one algorithm; every run of it shares one compiled step.

    Args:
        network: What is trained.
        algorithm: How.
        loss: Per-sample losses, shape `(n,)`.
        augment: What happens to a batch before the network sees it.
    """

    network: Network
    algorithm: Algorithm
    loss: Loss = optax.softmax_cross_entropy_with_integer_labels
    augment: Augmentation = PLAIN

    def start(self, seed: int) -> State:
        """The state before the first step; the same initialization for every algorithm."""
        params, context = self.network.start(jax.random.key(seed))
        return _strong(State(params, self.algorithm.init(self.network, self.loss, params), context))

    def run(
        self,
        data: Images,
        *,
        steps: int,
        batch: int,
        learning_rate: float,
        schedule: str = "constant",
        seed: int = 0,
        evaluations: int = 1,
        start: State | None = None,
        checkpoint: Checkpoint | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[State, Curve]:
        """Train, and test on the way.

        The batch of each step and its random key follow from the seed and the number of the step alone, so a run that
        goes on from a checkpoint has the same bits as one that was never interrupted (on the same device).

        Args:
            data: Trained on its training part, tested on its testing part.
            steps: Of the algorithm.
            batch: Samples of each step, drawn without replacement in each epoch.
            learning_rate: At the first step.
            schedule: `constant`, or `cosine` down to 0.
            seed: Of initialization, order and augmentation.
            evaluations: Tests, evenly spaced, the last after the last step.
            start: Default: `self.start(seed)`.
            checkpoint: Where to go on from, and to write to.
            progress: Called with (done, total).

        Returns:
            The last state and the curve. A run whose loss is not finite at a test is stopped there.

        Raises:
            ValueError: A batch larger than the training part, a schedule that does not exist, or a checkpoint of
                another run.
        """
        n = len(data.train_x)
        _check(n, batch, schedule)
        state = self.start(seed) if start is None else _strong(start)
        curve, done, spent = _empty(steps, evaluations, len(_factors(state))), 0, 0.0
        if checkpoint is not None:
            identity = np.array([steps, batch, learning_rate, list(SCHEDULES).index(schedule), seed, n], np.float64)
            state, curve, done, spent = _resume(checkpoint, identity, state, curve)
        images, labels = jnp.asarray(data.train_x), jnp.asarray(data.train_y)
        key, dtype = jax.random.key(seed), jnp.result_type(float)
        tests = {int(at): i for i, at in enumerate(curve.at)}
        pending: list[Scalar] = []
        clock = time.perf_counter()
        for step in range(done, steps):
            rate = np.asarray(learning_rate * SCHEDULES[schedule](step / steps), dtype)
            chosen, rate = jax.device_put((batch_indices(seed, step, n, batch), rate))
            state, loss = _step(self, state, images, labels, chosen, jax.random.fold_in(key, step), rate)
            pending.append(loss)
            progress(step + 1, steps)
            after = step + 1
            to_save = checkpoint is not None and after % checkpoint.every == 0 and after < steps
            if after not in tests and not to_save:
                continue
            curve.losses[after - len(pending) : after] = jax.device_get(pending)
            pending = []
            spent += time.perf_counter() - clock
            if after in tests:
                i = tests[after]
                curve.seconds[i], curve.factors[i] = spent, _factors(state)
                curve.loss[i], curve.accuracy[i] = self.test(state, data.test_x, data.test_y)
                if not (np.isfinite(curve.losses[:after]).all() and np.isfinite(curve.loss[i])):
                    break
            if to_save and checkpoint is not None:
                checkpoint.save(after, (state, curve, identity, np.array([after, spent])))
            clock = time.perf_counter()
        return state, curve

    def program(self, data: Images, batch: int) -> str:
        """A digest of the program of a step: of network, algorithm, loss and augmentation together. Cost: a trace."""
        state, images, labels = jax.eval_shape(
            lambda: (self.start(0), jnp.asarray(data.train_x), jnp.asarray(data.train_y))
        )
        chosen, rate = np.zeros(batch, np.int32), np.zeros((), jnp.result_type(float))
        step = functools.partial(_stepped, self)
        text = program_text(step, state, images, labels, chosen, jax.random.key(0), rate, differentiated=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def warm(self, data: Images, batch: int) -> float:
        """Compile by two steps and a test that are thrown away; the seconds it took."""
        clock = time.perf_counter()
        state, _ = self.run(data, steps=2, batch=batch, learning_rate=1e-3)
        jax.block_until_ready(state)
        return time.perf_counter() - clock

    def test(self, state: State, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """Mean loss and accuracy, in batches of `TEST_BATCH`."""
        n = len(x)
        size = min(n, TEST_BATCH)
        totals = np.zeros(2)
        for first in range(0, n, size):
            at = np.arange(first, first + size)
            images, labels, counts = jax.device_put((x[at % n], y[at % n], at < n))
            losses, hits = _test(
                self.network, self.loss, self.augment, state.params, state.context, images, labels, counts
            )
            totals += [float(losses), float(hits)]
        return totals[0] / n, totals[1] / n


def _stepped(
    trainer: Trainer, state: State, images: Array, labels: Array, chosen: Array, key: Key, rate: Scalar
) -> tuple[State, Scalar]:
    augment_key, step_key = jax.random.split(key)
    batch = Batch(trainer.augment(augment_key, images[chosen]), labels[chosen], state.context, step_key)
    stepped = trainer.algorithm.step(trainer.network, trainer.loss, state.params, state.optimizer, batch, rate)
    return _strong(State(stepped.params, stepped.state, stepped.context)), stepped.loss


# Convolutions of gray images, as in the demonstration, keep the order in which they add.
_step = quickly(static_argnums=(0,), depthwise=False)(_stepped)


@quickly(static_argnums=(0, 1, 2), depthwise=False)
def _test(
    network: Network,
    loss: Loss,
    augment: Augmentation,
    params: dict[str, Params],
    context: Context,
    x: Array,
    y: Array,
    counts: Array,
) -> tuple[Scalar, Scalar]:
    logits = network.logits(params, augment.plain(x), context)
    hits = jnp.argmax(logits, axis=-1).astype(y.dtype) == y
    return jnp.sum(jnp.where(counts, loss(logits, y), 0)), jnp.sum(hits & counts)


def _check(n: int, batch: int, schedule: str) -> None:
    if not 0 < batch <= n:
        raise ValueError(f"`batch` must be between 1 and the {n} training samples, got {batch}.")
    if schedule not in SCHEDULES:
        raise ValueError(f"`schedule` must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")


def batch_indices(seed: int, step: int, n: int, batch: int) -> np.ndarray:
    """The samples of a step: each epoch is a permutation of its own, and what does not fill a batch is left out."""
    epoch, place = divmod(step, n // batch)
    return _permutation(seed, epoch, n)[place * batch : (place + 1) * batch]


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n).astype(np.int32)


def _empty(steps: int, evaluations: int, factors: int) -> Curve:
    at = np.unique(np.linspace(0, steps, min(evaluations, steps) + 1).round().astype(int))[1:]
    loss, accuracy, seconds = (np.full(len(at), np.nan) for _ in range(3))
    return Curve(np.full(steps, np.nan), at, loss, accuracy, seconds, np.full((len(at), factors), np.nan))


def _factors(state: State) -> np.ndarray:
    """Those of the blocks, wherever in the optimizer's state they lie."""
    logs = optax.tree.get(state.optimizer, "log_factors")
    return np.zeros(0) if logs is None else np.exp(np.asarray(logs, np.float64))


def _resume(
    checkpoint: Checkpoint, identity: np.ndarray, state: State, curve: Curve
) -> tuple[State, Curve, int, float]:
    restored = checkpoint.restore((state, curve, identity, np.zeros(2)))
    if restored is None:
        return state, curve, 0, 0.0
    state, curve, found, (done, spent) = restored
    if not np.array_equal(found, identity):
        raise ValueError(
            f"`{checkpoint.folder}` is a checkpoint of a run with other settings (steps, batch, learning rate, "
            f"schedule, seed, samples: {found.tolist()}, now {identity.tolist()}): remove it, or choose another folder."
        )
    return state, curve, int(done), float(spent)


def _strong(tree: Any) -> Any:
    """Without weak types: after a step, or read from a file, a state meets the same compiled program."""

    def strong(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.astype(leaf.dtype)

    return jax.tree.map(strong, tree)
