"""Scale-amended SGD: gradients divided by scalars that stand for the local Hessians (Algorithm 2), as optax has it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from localhessian._arguments import expect, expect_count, expect_flag, expect_function, expect_key, expect_number, short
from localhessian._brief import by_value
from localhessian._memory import as_key
from localhessian._programs import compiled_if_eager
from localhessian._tree import floating_leaves, is_concrete, shapes, size
from localhessian._types import Activations, Array, Context, Key, Loss
from localhessian.curvature import LocalScalars, check_scalar
from localhessian.network import (
    Chain,
    admit,
    answer,
    by_block,
    check_arrays,
    check_chain,
    check_finite,
    expect_batch,
    first_samples,
    in_blocks,
    run_chain,
    validate_values,
)
from localhessian.training._estimate import refreshed
from localhessian.training._layouts import check_unmasked, scaled

TINY = 1e-30
"""Logarithms are taken of scalars above this."""
SAMPLES = 16
"""Of the batch, if nothing else is said."""
PROBES = 4
"""Random vectors, if nothing else is said."""
_NONE = object()
"""No `y` was given; None is one, of a loss that compares with nothing."""


@by_value
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
        expect("chain", chain, Chain, "the chain that was scaled")
        return dict(zip(chain.names, jnp.exp(self.log_factors), strict=True))


def scale_by_local_hessian(
    chain: Chain,
    loss: Loss,
    scalar: str = "mean",
    refresh: int | Array | None = 10,
    decay: float | Array = 0.9,
    damping: float | Array = 1e-3,
    normalize: bool = True,
    *,
    samples: int | None = None,
    probes: int | None = None,
    per_sample: Callable[[str], bool] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiply the gradient of block b by 1 / (m_{b,W} prod_{i > b} m_{i,z}).

    m stands for the Gauss-Newton part of a local Hessian: `mean` = tr(H)/dimension; `range_mean` = tr(H^2)/tr(H), the
    mean curvature where gradients lie; `max` = lambda_max. They are estimated, averaged over refreshes, and damped
    (m + damping * the largest m seen), so that they stay bounded as the loss goes to 0. All parameters of a block, its
    biases and norms included, share its factor: the local Hessian is that of the block, and a factor of its own
    for a bias would undo the balance between the two that the gradient has.

    Args:
        chain: The network.
        loss: Per-sample losses, shape `(n,)`.
        scalar: `mean`, `range_mean` or `max`, in the meaning of `lh.local_scalars`; estimates of `max` are Ritz values,
            from below.
        refresh: Steps between two estimates; None for no estimates.
        decay: Of the moving average over estimates.
        damping: Relative to the largest scalar seen.
        normalize: Whether the geometric mean of the factors, weighted by parameter counts, is made 1, so that a
            learning rate for SGD keeps its meaning; False for the formula itself.
        samples: Of the batch, the first so many serve the estimate (with batch normalization they make a batch of
            their own), by default 16; all of them where it cannot be said which leaves of `y` and `context` belong to
            the samples.
        per_sample: Told the path of a leaf of `y` or `context` (`"y['label']"`, `"context[0]"`), whether it belongs to
            the samples. None finds out: the leaf's leading axis must be that of the samples, and shapes, or another
            order of made-up samples, must confirm it. Telling saves a trace of the network for each array of the
            context whose leading axis has as many entries as the batch, as channels may.
        probes: Random vectors of an estimate, by default 4. Each pair of them gives one of tr(H^2), with a relative
            standard deviation of about 1.4 whatever the dimension: two vectors are one pair, four are six. Of `max`
            the products with H.

    Returns:
        An optax transformation; `update(grads, state, params, x=, y=, context=, key=, scalars=)`, gradients and
        parameters in the layout of the blocks or of the model that the chain was cut from (in whatever containers, as
        `nnx.Optimizer` gives them). Of an array that several blocks use, gradients in the layout of the blocks are each
        use's own, and at each use comes out the sum of the scaled ones; in the layout of the model there is one
        gradient, and it is multiplied by the mean of the factors. Without a key the random vectors follow from the
        count of steps. `scalars` from `lh.local_scalars`, which are exact where structure gives them, take the place of
        an estimate at this step; with `refresh=None` none is ever made, and steps without `scalars` keep the last.

    Raises:
        TypeError: `chain` is no chain.
        ValueError: Settings that mean nothing; parameters of another network or hidden by a mask; `update` without
            parameters or data, or with data that `lh.back_match` refuses for their shapes; outside of `jax.jit` also
            numbers that are not finite, and (at the first step with these shapes) what else it refuses for its values.

    Cost: every `refresh` steps one forward pass of the chain on `samples` samples, and for each side of each block
    `probes` jvps, of `max` as many vjps too. In `optax.inject_hyperparams` name `chain`, `loss` and, where they are
    given, `samples`, `probes` and `per_sample` as `static_args`: optax takes any other function for a schedule, and
    calls it with the count of steps ("missing a required argument") before this one is reached.

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
    samples, probes = SAMPLES if samples is None else samples, PROBES if probes is None else probes
    _check_settings(chain, loss, scalar, refresh, decay, damping, normalize, samples, probes, per_sample)
    loss, blocks = as_key(loss, "`loss`"), len(chain)
    validated: set[Any] = set()

    def init(params: Any) -> ScaleByLocalHessianState:
        check_unmasked(params)
        in_blocks(chain, params)
        # Logarithms of products want float32 at least, whatever the parameters are stored in.
        wide = any(jnp.finfo(leaf.dtype).bits > 32 for leaf in floating_leaves(params))
        zeros = jnp.zeros(blocks, jnp.float64 if wide else jnp.float32)
        return ScaleByLocalHessianState(jnp.zeros((), jnp.int32), zeros, zeros, zeros, zeros, zeros)

    def update(
        updates: Any,
        state: ScaleByLocalHessianState,
        params: Any = None,
        *,
        x: Activations = None,
        y: Any = _NONE,
        context: Context = None,
        key: Key | None = None,
        scalars: LocalScalars | None = None,
        **extra: Any,
    ) -> tuple[Any, ScaleByLocalHessianState]:
        del extra
        if params is None or (scalars is None and refresh is not None and (x is None or y is _NONE)):
            raise ValueError(
                "`scale_by_local_hessian` needs the parameters and the batch: call "
                "`optimizer.update(grads, state, params, x=x, y=y)`."
            )
        expect("state", state, ScaleByLocalHessianState, "what `init` or the last `update` returned")
        expect("scalars", scalars, (LocalScalars, type(None)), "what `lh.local_scalars` returns")
        expect_key(key)
        expect_batch("scale_by_local_hessian", x)
        check_unmasked((params, updates))
        _check_values(updates, params, x, None if y is _NONE else y)
        of_blocks = by_block(chain, params)
        dtype = state.weight_scalars.dtype
        of_weights, of_inputs, due = state.weight_scalars, state.input_scalars, jnp.asarray(scalars is not None)
        if scalars is not None:
            of_weights, of_inputs = _given(scalars, blocks, dtype)
        elif refresh is not None:
            admit(chain, of_blocks, x, y, loss, context)
            few = first_samples(chain, loss, of_blocks, x, y, context, samples, per_sample)
            if is_concrete(params, few) and (seen := shapes((of_blocks, few))) not in validated:
                _check_answers(chain, of_blocks, *few, loss)
                validated.add(seen)
            key = jax.random.fold_in(jax.random.key(0), state.steps) if key is None else key
            due = state.steps % refresh == 0
            of_weights, of_inputs = refreshed(
                chain, loss, scalar, probes, dtype, due, (of_weights, of_inputs), of_blocks, *few, key
            )
        counts = np.asarray([size(of_blocks.get(name, ())) for name in chain.names], dtype) if normalize else None
        factors, after = _advanced(state, (of_weights, of_inputs), due, decay, damping, counts)
        return scaled(chain, factors, updates, of_blocks), after

    return optax.GradientTransformationExtraArgs(init, update)


def scale_amended_sgd(
    chain: Chain,
    loss: Loss,
    learning_rate: Any,
    momentum: float | Array | None = None,
    *,
    nesterov: bool = False,
    scalar: str = "mean",
    refresh: int | Array | None = 10,
    decay: float | Array = 0.9,
    damping: float | Array = 1e-3,
    normalize: bool = True,
    samples: int | None = None,
    probes: int | None = None,
    per_sample: Callable[[str], bool] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD on gradients scaled by `scale_by_local_hessian`.

    Args:
        chain: The network.
        loss: Per-sample losses, shape `(n,)`.
        learning_rate: A number, or a schedule of optax.
        momentum: None for none.
        nesterov: Whether the momentum is Nesterov's.
        scalar: This and all below as of `scale_by_local_hessian`.
        refresh: Steps between two estimates.
        decay: Of the moving average.
        damping: Relative to the largest scalar seen.
        normalize: Whether the learning rate keeps its meaning.
        samples: For an estimate.
        probes: Of an estimate.
        per_sample: Which leaves belong to the samples.

    Returns:
        An optax transformation, used like `scale_by_local_hessian`.

    Raises:
        ValueError: Settings that mean nothing.
    """
    expect_flag("nesterov", nesterov)
    if callable(learning_rate):
        expect_function("learning_rate", learning_rate, "a finite number or a schedule", takes=1)
    else:
        expect_number("learning_rate", learning_rate)
    scale = scale_by_local_hessian(
        chain,
        loss,
        scalar,
        refresh,
        decay,
        damping,
        normalize,
        samples=samples,
        probes=probes,
        per_sample=per_sample,
    )
    parts = [scale]
    if momentum is not None:
        expect_number("momentum", momentum)
        parts.append(optax.trace(momentum, nesterov))
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))


def _check_settings(chain, loss, scalar, refresh, decay, damping, normalize, samples, probes, per_sample) -> None:
    check_chain(chain)
    _check_loss(loss)
    check_scalar(scalar)
    expect_number("decay", decay, below=1.0)
    expect_number("damping", damping)
    expect_flag("normalize", normalize)
    if per_sample is not None:
        expect_function("per_sample", per_sample, "a function of the path of a leaf", takes=1)
    if refresh is not None and is_concrete(refresh):
        expect_count("refresh", refresh, 1)
    expect_count("samples", samples, 1)
    expect_count("probes", probes, 2)


def _check_loss(loss: Any) -> None:
    if isinstance(loss, type) or not callable(loss):
        raise ValueError(
            "`loss` must be a function of outputs and `y` (`optax.inject_hyperparams`: name it in `static_args`), got "
            f"{short(loss)}."
        )
    expect_function("loss", loss, "a function of outputs and `y`", takes=2)


def _check_values(updates: Any, params: Any, x: Any, y: Any) -> None:
    """Where there are numbers, none of them may be NaN or infinite: one sentence instead of a lost network."""
    for name, tree in (("updates", updates), ("params", params), ("x", x), ("y", y)):
        check_arrays(f"`{name}`", tree)
        if is_concrete(tree):
            check_finite(f"`{name}`", tree)


def _check_answers(chain: Chain, params: Any, x: Activations, y: Any, context: Context, loss: Loss) -> None:
    """What `lh.back_match` checks of numbers, of the samples that serve the estimate; raises ValueError."""
    of_blocks = {name: params.get(name, ()) for name in chain.names}
    context = chain.context_for(x, context, of_blocks)
    activations = run_chain(chain, of_blocks, x, context)
    validate_values(chain, of_blocks, y, context, activations, answer(loss, activations[-1], y), loss)


def _given(scalars: LocalScalars, blocks: int, dtype: Any) -> tuple[Array, Array]:
    """Those that the user hands in."""
    for name, values in (("weights", scalars.weights), ("inputs", scalars.inputs)):
        if jnp.shape(values) != (blocks,):
            raise ValueError(f"`scalars.{name}` must have one entry for each of {blocks} blocks: {jnp.shape(values)}.")
    return jnp.asarray(scalars.weights, dtype), jnp.asarray(scalars.inputs, dtype)


@compiled_if_eager()
def _advanced(
    state: ScaleByLocalHessianState, found: tuple[Array, Array], due: Array, decay: Any, damping: Any, counts: Any
) -> tuple[Array, ScaleByLocalHessianState]:
    """The factors and the next state; with `counts` of parameters the weighted mean of the logarithms is 0."""
    weights, inputs = (
        _average(before, now, decay, due)
        for before, now in zip((state.weight_scalars, state.input_scalars), found, strict=True)
    )
    peaks = jnp.maximum(state.weight_peaks, weights), jnp.maximum(state.input_peaks, inputs)
    logs = _log_factors(weights + damping * peaks[0], inputs + damping * peaks[1])
    if counts is not None:
        logs = logs - jnp.sum(counts * logs) / jnp.sum(counts)
    return jnp.exp(logs), ScaleByLocalHessianState(state.steps + 1, weights, inputs, *peaks, logs)


def _average(before: Array, now: Array, decay: float | Array, due: Array) -> Array:
    """The moving average where there is something to average; what is not finite is no news."""
    sound = due & jnp.isfinite(now) & (now > 0)
    mixed = jnp.where(before > 0, decay * before + (1 - decay) * now, now)
    return jnp.where(sound, mixed, before)


def _log_factors(weights: Array, inputs: Array) -> Array:
    """-log m_{b,W} - sum_{i > b} log m_{i,z}; a block without an estimate yet counts as 1."""
    log_weights, log_inputs = (jnp.where(m > 0, jnp.log(jnp.maximum(m, TINY)), 0) for m in (weights, inputs))
    above = jnp.concatenate([jnp.cumsum(log_inputs[:0:-1])[::-1], jnp.zeros(1, inputs.dtype)])
    return -log_weights - above
