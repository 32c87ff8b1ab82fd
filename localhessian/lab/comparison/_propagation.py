"""Back-matching propagation as a training algorithm."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from localhessian._types import Loss, Params, Scalar
from localhessian.lab.comparison._algorithm import Batch, Stepped
from localhessian.lab.zoo import Network
from localhessian.training import GradientStep, Solver, initial_state, propagate


@dataclasses.dataclass(frozen=True)
class Propagation:
    """Steps of `lh.propagate`; the learning rate is what the weight solver makes of it.

    Args:
        name: Of your choice.
        weight_solver: `weight_solver(learning_rate)` returns the solver, or a mapping from block names to solvers;
            called inside the compiled step, where the learning rate is a traced scalar.
        input_solver: Of the inputs of every block.
        grid: Smallest and largest learning rate to try.

    Example:
        >>> import localhessian as lh
        >>> from localhessian.lab import Propagation
        >>> Propagation("back-propagation", lh.GradientStep, lh.GradientStep(1.0), (1e-3, 1.0)).name
        'back-propagation'
    """

    name: str
    weight_solver: Callable[[Any], Any]
    input_solver: Solver = GradientStep(1.0)  # noqa: RUF009 - frozen
    grid: tuple[float, float] = (1e-3, 10.0)

    def init(self, network: Network, loss: Loss, params: dict[str, Params]) -> Any:
        """The state of every solver."""
        del loss
        return initial_state(network.chain, params, self.weight_solver(1.0), self.input_solver)

    def step(
        self, network: Network, loss: Loss, params: dict[str, Params], state: Any, batch: Batch, learning_rate: Scalar
    ) -> Stepped:
        """One sweep from the last block to the first."""
        chain, (x, y, context, key) = network.chain, batch
        solvers = self.weight_solver(learning_rate), self.input_solver
        moved, info = propagate(chain, params, x, y, loss, *solvers, context=context, state=state, key=key)
        after = context if network.outputs is None else network.forward(params, x, context)[1]
        return Stepped(moved, jax.tree.map(lambda leaf: leaf, info.state), after, info.loss)
