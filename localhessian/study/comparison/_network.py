"""A network to train: its chain, how its parameters begin, and how it predicts."""

import dataclasses
from collections.abc import Callable

from localhessian._tree import size
from localhessian._types import Activations, Array, Context, Key, Params
from localhessian.network import Chain, TracedChain


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to train.

    Args:
        name: In tables and files.
        chain: In training mode.
        init: `init(key)` returns the parameters by block and the context (None for none).
        predict: `predict(params, x, context)` returns the logits for testing. Default: the last activation of the
            chain, so with batch normalization by the statistics of the test batch.

    Raises:
        ValueError: Two blocks share an array; updates of its uses would differ.
    """

    name: str
    chain: Chain
    init: Callable[[Key], tuple[dict[str, Params], Context]]
    predict: Callable[[dict[str, Params], Activations, Context], Array] | None = None

    def start(self, key: Key) -> tuple[dict[str, Params], Context]:
        """Parameters and context before the first step."""
        params, context = self.init(key)
        if isinstance(self.chain, TracedChain) and size(self.chain.merge(params, like=params)) < size(params):
            raise ValueError(
                f"network `{self.name}` uses an array in two blocks, and each would update its own copy: untie it, or "
                "train it by a loop of your own."
            )
        return params, context

    def logits(self, params: dict[str, Params], x: Activations, context: Context) -> Array:
        """For testing."""
        if self.predict is not None:
            return self.predict(params, x, context)
        return self.chain.forward(params, x, context)[-1]

    def advance(self, params: dict[str, Params], x: Activations, context: Context) -> Context:
        """The context of the next step: running statistics and random counts moved on."""
        if context is None or not isinstance(self.chain, TracedChain):
            return context
        return self.chain.next_context(params, x, context)
