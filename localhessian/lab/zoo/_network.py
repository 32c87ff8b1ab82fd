"""A network to train: its chain, how its parameters begin, and how it predicts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from localhessian._programs import compiled
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
        outputs: `outputs(params, x, context)` returns the logits and the context of the next step (running statistics,
            random counts) of one forward pass in training mode. Default: the chain, and the context as it is.
        predict: `predict(params, x, context)` returns the logits for testing. Default: the chain, so with batch
            normalization by the statistics of the test batch.
    """

    name: str
    chain: Chain
    init: Callable[[Key], tuple[dict[str, Params], Context]]
    outputs: Callable[[dict[str, Params], Activations, Context], tuple[Array, Context]] | None = None
    predict: Callable[[dict[str, Params], Activations, Context], Array] | None = None

    def start(self, key: Key) -> tuple[dict[str, Params], Context]:
        """Parameters and context before the first step.

        Raises:
            ValueError: Two blocks share an array; updates of its uses would differ.
        """
        params, context = self.init(key)
        if isinstance(self.chain, TracedChain) and size(self.chain.merge(params, tied="sum")) < size(params):
            raise ValueError(
                f"network `{self.name}` uses an array in two blocks, and each would update its own copy: untie it, or "
                "train it by a loop of your own."
            )
        return params, context

    def forward(self, params: dict[str, Params], x: Activations, context: Context) -> tuple[Array, Context]:
        """Logits in training mode, and the context of the next step."""
        if self.outputs is not None:
            return self.outputs(params, x, context)
        return self.chain.forward(params, x, context)[-1], context

    def logits(self, params: dict[str, Params], x: Activations, context: Context) -> Array:
        """For testing."""
        if self.predict is not None:
            return self.predict(params, x, context)
        return self.chain.forward(params, x, context)[-1]


def built(build: Callable[[Any], Any], key: Key) -> Any:
    """The model of `build(nnx.Rngs(key))`, by one program.

    The random numbers of each array are a program of their own outside of one, and XLA takes a second for some.
    """
    return _begun(build, _beginning(build)(key))


def _begun(build: Callable[[Any], Any], states: tuple[Any, Any]) -> Any:
    """A model with these parameters and this state."""
    return nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0)))), *states)


def _beginning(build: Callable[[Any], Any]) -> Callable[[Key], tuple[Any, Any]]:
    """From a key to the parameters and the state of a model; each model begins about once."""

    @functools.partial(compiled, once=True)
    def begin(key: Key) -> tuple[Any, Any]:
        _, params, state = nnx.split(build(nnx.Rngs(key)), nnx.Param, ...)
        return params, state

    return begin


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
        >>> from localhessian.lab import nnx_network
        >>> def build(rngs):
        ...     return nnx.Sequential(nnx.Linear(4, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs))
        >>> small = nnx_network("small", build, jnp.ones((3, 4)))
        >>> params, context = small.start(jax.random.key(0))
        >>> small.logits(params, jnp.ones((5, 4)), context).shape
        (5, 2)
    """
    begin = _beginning(build)
    model = _begun(build, begin(jax.random.key(0)))
    model.train()
    chain, _, context = chain_from_nnx(model, x, at=at)
    trained = nnx.graphdef(model)
    model.eval()
    tested = nnx.graphdef(model)
    has_state = context.given is not None

    def init(key: Key) -> tuple[dict[str, Params], Context]:
        params, state = begin(key)
        return chain.split(params), state if has_state else None

    def model_of(graph: Any, params: dict[str, Params], context: Context) -> Any:
        states = (chain.merge(params), context) if has_state else (chain.merge(params),)
        return nnx.merge(graph, *jax.tree.map(lambda leaf: leaf, states))  # the same arrays in new variables

    def outputs(params: dict[str, Params], x: Activations, context: Context) -> tuple[Array, Context]:
        model = model_of(trained, params, context)
        logits = model(x)
        return logits, nnx.state(model, nnx.Not(nnx.Param)) if has_state else None

    def predict(params: dict[str, Params], x: Activations, context: Context) -> Array:
        return model_of(tested, params, context)(x)

    return Network(name, chain, init, outputs, predict)
