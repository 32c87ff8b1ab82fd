"""A network to train: its chain, how its parameters begin, and how it predicts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from localhessian._tree import size
from localhessian._types import Activations, Array, Context, Key, Params
from localhessian.network import Chain, TracedChain, chain_from_nnx


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
        if isinstance(self.chain, TracedChain) and size(self.chain.merge(params, tied="sum")) < size(params):
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


def nnx_network(name: str, build: Callable[[Any], Any], x: Activations, *, at: Any = None) -> Network:
    """A flax nnx model to train: in training mode, and tested in evaluation mode with the running statistics.

    Args:
        name: In tables and files.
        build: `build(rngs)` makes the `nnx.Module`.
        x: A batch of the samples that it takes; only the shape counts.
        at: After which submodules a block ends, as for `lh.chain_from_nnx`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from localhessian.study import nnx_network
        >>> def build(rngs):
        ...     return nnx.Sequential(nnx.Linear(4, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs))
        >>> small = nnx_network("small", build, jnp.ones((3, 4)))
        >>> params, context = small.start(jax.random.key(0))
        >>> small.logits(params, jnp.ones((5, 4)), context).shape
        (5, 2)
    """
    from flax import nnx  # noqa: PLC0415  only who brings such a model imports it

    model = build(nnx.Rngs(0))
    model.train()
    chain = chain_from_nnx(model, x, at=at).chain
    model.eval()
    tester = chain_from_nnx(model, x, at=at).chain

    @jax.jit
    def init(key: Key) -> tuple[Any, Context]:
        _, params, state = nnx.split(build(nnx.Rngs(key)), nnx.Param, ...)
        return params, state

    def start(key: Key) -> tuple[dict[str, Params], Context]:
        params, state = init(key)
        return chain.split(params), chain.context_for(x, state if jax.tree.leaves(state) else None)

    def predict(params: dict[str, Params], x: Activations, context: Context) -> Array:
        return tester.forward(params, x, context)[-1]

    return Network(name, chain, start, predict)
