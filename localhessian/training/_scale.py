"""Scale-amended SGD: gradients divided by scalars that stand for the local Hessians (Algorithm 2), as optax has it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from localhessian._memory import as_key
from localhessian._tree import floating, size
from localhessian._types import Activations, Array, Context, Key, Loss
from localhessian.curvature import LocalScalars, check_scalar, local_scalar
from localhessian.network import Chain, TracedChain, first_samples

TINY = 1e-30
"""Logarithms are taken of scalars above this."""


class ScaleByLocalHessianState(NamedTuple):
    """What the transformation remembers; arrays with one entry for each block, in the order of the chain."""

    steps: Array
    """Updates made."""
    weight_scalars: Array
    """(B,): m_{b,W}, averaged over refreshes."""
    input_scalars: Array
    """(B,): m_{b,z}, averaged; that of the first block is not used."""
    weight_peaks: Array
    """(B,): the largest m_{b,W} seen, for the damping."""
    input_peaks: Array
    """(B,): the largest m_{b,z} seen."""
    log_factors: Array
    """(B,): log of what the gradient of each block was multiplied by, last time."""

    def factors(self, chain: Chain) -> dict[str, Array]:
        """The factor of each block by its name, to log and to plot."""
        return dict(zip(chain.names, jnp.exp(self.log_factors), strict=True))


def scale_by_local_hessian(
    chain: Chain,
    loss: Loss,
    scalar: str = "range_mean",
    refresh: int | None = 10,
    decay: float = 0.9,
    damping: float = 1e-3,
    normalize: bool = True,
    *,
    samples: int = 16,
    probes: int = 4,
    per_sample: Callable[[str], bool] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiply the gradient of block b by 1 / (m_{b,W} prod_{i > b} m_{i,z}).

    m stands for the Gauss-Newton part of a local Hessian: `range_mean` = tr(H^2)/tr(H), the mean curvature where
    gradients lie; `mean` = tr(H)/dimension; `max`. They are estimated by jvps, averaged over refreshes, and damped
    (m + damping * the largest m seen), so that they stay bounded as the loss goes to 0. All parameters of a block, its
    biases and norms included, share its factor: the local Hessian is that of the block, and a factor of its own
    for a bias would undo the balance between the two that the gradient has.

    Args:
        chain: The network.
        loss: Per-sample losses, shape `(n,)`.
        scalar: `range_mean`, `mean` or `max`.
        refresh: Steps between two estimates; None for no estimates.
        decay: Of the moving average over estimates.
        damping: Relative to the largest scalar seen.
        normalize: Whether the geometric mean of the factors, weighted by parameter counts, is made 1, so that a
            learning rate for SGD keeps its meaning; False for the formula itself.
        samples: Of the batch, the first so many serve the estimate (with batch normalization they make a batch of
            their own); all of them where it cannot be said which leaves of `y` and `context` belong to the samples.
        per_sample: Told the path of a leaf of `y` or `context` (`"y['label']"`, `"context[0]"`), whether it belongs to
            the samples. None finds out: the leaf's leading axis must be that of the samples, and shapes, or another
            order of made-up samples, must confirm it.
        probes: Random vectors of an estimate. Each pair of them gives one of tr(H^2), with a relative standard
            deviation of about 1.4 whatever the dimension: two vectors are one pair, four are six.

    Returns:
        An optax transformation; `update(grads, state, params, x=, y=, context=, key=, scalars=)`, gradients and
        parameters in the layout of the blocks or of the model that the chain was cut from. An array that several blocks
        use is multiplied by the mean of their factors. Without a key the random vectors follow from the count of steps.
        `scalars` from `lh.local_scalars`, which are exact where structure gives them, take the place of an estimate at
        this step; with `refresh=None` none is ever made, and steps without `scalars` keep the last.

    Raises:
        ValueError: Settings that mean nothing; `update` without parameters or data.

    Cost: every `refresh` steps one forward pass of the chain on `samples` samples, and for each side of each block a
    forward pass and `probes` jvps.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z * w)), lh.Block("b", lambda w, z: 10 * z * w)])
        >>> loss = lambda z, y: 0.5 * ((z - y) ** 2).sum(1)
        >>> params = {"a": jnp.array([1.0]), "b": jnp.array([2.0])}
        >>> x, y = jnp.array([[0.5], [1.0]]), jnp.array([[1.0], [3.0]])
        >>> optimizer = optax.chain(lh.scale_by_local_hessian(chain, loss), optax.scale_by_learning_rate(0.1))
        >>> state = optimizer.init(params)
        >>> grads = jax.grad(lambda params: loss(chain.forward(params, x)[-1], y).mean())(params)
        >>> updates, state = optimizer.update(grads, state, params, x=x, y=y)
        >>> sorted(state[0].factors(chain))
        ['a', 'b']

    Source: Zhang, Chen & Liu (2018), Algorithm 2; the scalars as defined in docs/theory.md, 5.
    """
    check_scalar(scalar)
    _check(refresh=refresh, decay=decay, damping=damping, samples=samples, probes=probes)
    loss, blocks = as_key(loss, "`loss`"), len(chain)

    def init(params: Any) -> ScaleByLocalHessianState:
        # Logarithms of products want float32 at least, whatever the parameters are stored in.
        widest = max((leaf.dtype for leaf in floating(params)[0]), key=lambda dtype: jnp.finfo(dtype).bits)
        zeros = jnp.zeros(blocks, widest if jnp.finfo(widest).bits > 32 else jnp.float32)
        return ScaleByLocalHessianState(jnp.zeros((), jnp.int32), zeros, zeros, zeros, zeros, zeros)

    def update(
        updates: Any,
        state: ScaleByLocalHessianState,
        params: Any = None,
        *,
        x: Activations = None,
        y: Any = None,
        context: Context = None,
        key: Key | None = None,
        scalars: LocalScalars | None = None,
        **extra: Any,
    ) -> tuple[Any, ScaleByLocalHessianState]:
        del extra
        if params is None or (scalars is None and refresh is not None and (x is None or y is None)):
            raise ValueError(
                "`scale_by_local_hessian` needs the parameters and the batch: call "
                "`optimizer.update(grads, state, params, x=x, y=y)`."
            )
        in_blocks = isinstance(updates, dict) and set(updates) <= set(chain.names)
        by_block = params if in_blocks else _traced(chain).split(params)
        dtype = state.weight_scalars.dtype
        of_weights, of_inputs, due = state.weight_scalars, state.input_scalars, jnp.asarray(scalars is not None)
        if scalars is not None:
            of_weights, of_inputs = _given(scalars, blocks, dtype)
        elif refresh is not None:
            few_x, few_y, where = first_samples(chain, loss, by_block, x, y, context, samples, per_sample)
            key = jax.random.fold_in(jax.random.key(0), state.steps) if key is None else key
            # Only jvps stand in the branch: the CPU runs other derivatives of convolutions slowly there.
            due = state.steps % refresh == 0
            of_weights, of_inputs = jax.lax.cond(
                due,
                lambda: _scalars(chain, loss, scalar, by_block, few_x, few_y, where, key, probes, dtype),
                lambda: (state.weight_scalars, state.input_scalars),
            )
        weights = _average(state.weight_scalars, of_weights, decay, due)
        inputs = _average(state.input_scalars, of_inputs, decay, due)
        peaks = jnp.maximum(state.weight_peaks, weights), jnp.maximum(state.input_peaks, inputs)
        logs = _log_factors(weights + damping * peaks[0], inputs + damping * peaks[1])
        if normalize:
            counts = jnp.asarray([size(by_block.get(name, ())) for name in chain.names], dtype)
            logs = logs - jnp.sum(counts * logs) / jnp.sum(counts)
        factors = jnp.exp(logs)
        after = ScaleByLocalHessianState(state.steps + 1, weights, inputs, *peaks, logs)
        if in_blocks:
            return {name: _times(factors[chain.index(name)], updates[name]) for name in updates}, after
        return _times_in_model(_traced(chain), factors, by_block, updates), after

    return optax.GradientTransformationExtraArgs(init, update)


def scale_amended_sgd(
    chain: Chain,
    loss: Loss,
    learning_rate: Any,
    momentum: float | None = None,
    *,
    nesterov: bool = False,
    **settings: Any,
) -> optax.GradientTransformationExtraArgs:
    """SGD on gradients scaled by `scale_by_local_hessian`.

    Args:
        chain: The network.
        loss: Per-sample losses, shape `(n,)`.
        learning_rate: A number, or a schedule of optax.
        momentum: None for none.
        nesterov: Whether the momentum is Nesterov's.
        settings: Of `scale_by_local_hessian`.

    Returns:
        An optax transformation, used like `scale_by_local_hessian`.
    """
    parts = [scale_by_local_hessian(chain, loss, **settings)]
    if momentum is not None:
        parts.append(optax.trace(momentum, nesterov))
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))


def _scalars(chain, loss, scalar, params, x, y, context, key, probes, dtype) -> tuple[Array, Array]:
    """m_W and m_z of every block; 1 for a side that does not exist."""
    activations = chain.forward(params, x, context)
    found: dict[str, list[Array]] = {"params": [], "input": []}
    for b, block in enumerate(chain.blocks, start=1):
        of_block, z = params.get(block.name, ()), activations[b - 1]
        for wrt, variables in (("params", of_block), ("input", z if b > 1 else ())):
            side = jax.random.fold_in(jax.random.fold_in(key, b), wrt == "input")
            if floating(variables)[0]:
                last = loss if b == len(chain) else None
                m = local_scalar(block, last, wrt, scalar, of_block, z, y, context, side, probes)
            else:
                m = jnp.ones((), dtype)
            found[wrt].append(m.astype(dtype))
    return jnp.stack(found["params"]), jnp.stack(found["input"])


def _given(scalars: LocalScalars, blocks: int, dtype: Any) -> tuple[Array, Array]:
    """Those that the user hands in."""
    for name, values in (("weights", scalars.weights), ("inputs", scalars.inputs)):
        if jnp.shape(values) != (blocks,):
            raise ValueError(f"`scalars.{name}` must have one entry for each of {blocks} blocks: {jnp.shape(values)}.")
    return jnp.asarray(scalars.weights, dtype), jnp.asarray(scalars.inputs, dtype)


def _average(before: Array, now: Array, decay: float, due: Array) -> Array:
    """The moving average where there is something to average; what is not finite is no news."""
    sound = due & jnp.isfinite(now) & (now > 0)
    mixed = jnp.where(before > 0, decay * before + (1 - decay) * now, now)
    return jnp.where(sound, mixed, before)


def _log_factors(weights: Array, inputs: Array) -> Array:
    """-log m_{b,W} - sum_{i > b} log m_{i,z}; a block without an estimate yet counts as 1."""
    log_weights, log_inputs = (jnp.where(m > 0, jnp.log(jnp.maximum(m, TINY)), 0) for m in (weights, inputs))
    above = jnp.concatenate([jnp.cumsum(log_inputs[:0:-1])[::-1], jnp.zeros(1, inputs.dtype)])
    return -log_weights - above


def _times(factor: Array, tree: Any) -> Any:
    leaves, rebuild = floating(tree)
    return rebuild([factor.astype(leaf.dtype) * leaf for leaf in leaves])


def _times_in_model(chain: TracedChain, factors: Array, by_block: dict[str, Any], updates: Any) -> Any:
    """Each array of the model times the mean factor of the blocks that use it."""

    def filled(values: Array) -> Any:
        trees = {
            name: jax.tree.map(lambda leaf, b=b: jnp.full(leaf.shape, values[b], values.dtype), by_block[name])
            for b, name in enumerate(chain.names)
            if name in by_block
        }
        return chain.merge(trees, tied="sum")

    total, uses = filled(factors), filled(jnp.ones_like(factors))
    return jax.tree.map(
        lambda leaf, total, uses: leaf * (total / jnp.maximum(uses, 1)).astype(leaf.dtype), updates, total, uses
    )


def _traced(chain: Chain) -> TracedChain:
    if not isinstance(chain, TracedChain):
        raise ValueError(
            f"gradients must be a dict of the blocks' names ({', '.join(chain.names)}): only a chain that was cut from "
            "a model knows another layout."
        )
    return chain


def _check(**settings: Any) -> None:
    for name, least in (("refresh", 1), ("samples", 1), ("probes", 2)):
        if settings[name] is not None and settings[name] < least:
            raise ValueError(f"`{name}` must be at least {least}, got {settings[name]}.")
    if not 0 <= settings["decay"] < 1:
        raise ValueError(f"`decay` must lie between 0 and 1, got {settings['decay']}.")
    if not settings["damping"] >= 0:
        raise ValueError(f"`damping` must not be negative, got {settings['damping']}.")
