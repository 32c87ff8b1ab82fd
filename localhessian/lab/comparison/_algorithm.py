"""Training algorithms of one form, so that any optax optimizer and back-matching look the same to the loop."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import optax

from localhessian._brief import by_value
from localhessian._types import Activations, Array, Context, Key, Loss, Params, Scalar
from localhessian.lab.zoo import Network
from localhessian.network import Chain


@by_value
class Batch(NamedTuple):
    """What one step sees."""

    x: Activations
    y: Array
    context: Context
    key: Key


@by_value
class Stepped(NamedTuple):
    """What one step leaves."""

    params: dict[str, Params]
    state: Any
    context: Context
    """Of the next step."""
    loss: Scalar
    """Mean over the batch, before the step."""


@runtime_checkable
class Algorithm(Protocol):
    """A training algorithm; frozen and hashable. Its learning rate is an argument: another value compiles nothing."""

    @property
    def name(self) -> str:
        """Its name in tables and files."""

    @property
    def grid(self) -> tuple[float, float]:
        """Smallest and largest learning rate to try."""

    def init(self, network: Network, loss: Loss, params: dict[str, Params]) -> Any:
        """The state before the first step, a pytree of arrays."""

    def step(
        self, network: Network, loss: Loss, params: dict[str, Params], state: Any, batch: Batch, learning_rate: Scalar
    ) -> Stepped:
        """One step, inside a compiled program."""


@dataclasses.dataclass(frozen=True)
class Descent:
    """Gradients by back-propagation, handed to an optax optimizer.

    Args:
        name: Of your choice.
        make: `make(chain, loss, learning_rate)` returns the optimizer; called inside the compiled step, where the
            learning rate is a traced scalar.
        grid: Smallest and largest learning rate to try.

    Example:
        >>> import optax
        >>> from localhessian.lab import Descent
        >>> Descent("nesterov", lambda chain, loss, rate: optax.sgd(rate, 0.9, nesterov=True), (1e-4, 0.3)).name
        'nesterov'
    """

    name: str
    make: Callable[[Chain, Loss, Any], optax.GradientTransformation]
    grid: tuple[float, float] = (1e-3, 1.0)

    def init(self, network: Network, loss: Loss, params: dict[str, Params]) -> Any:
        """The state of the optimizer."""
        return self.make(network.chain, loss, 1.0).init(params)

    def step(
        self, network: Network, loss: Loss, params: dict[str, Params], state: Any, batch: Batch, learning_rate: Scalar
    ) -> Stepped:
        """One gradient and one update; the optimizer is offered `x`, `y`, `context`, `key`, `value`, `grad`."""

        def objective(params: dict[str, Params]) -> tuple[Scalar, Context]:
            logits, context = network.forward(params, batch.x, batch.context)
            return loss(logits, batch.y).mean(), context

        (value, context), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        optimizer = optax.with_extra_args_support(self.make(network.chain, loss, learning_rate))
        extra = {**batch._asdict(), "value": value, "grad": gradient, "value_fn": lambda params: objective(params)[0]}
        updates, state = optimizer.update(gradient, state, params, **extra)
        return Stepped(optax.apply_updates(params, updates), state, context, value)
