"""The door of back-matching: one batch, or a stream of them."""

import functools
from typing import Any, overload

import jax

from localhessian._mesh import is_traced
from localhessian._tree import floating, floating_leaves
from localhessian._types import Activations, Context, Loss, Params
from localhessian.network._backmatching import BackMatching, match_batch
from localhessian.network._birth import birth
from localhessian.network._chain import Chain
from localhessian.network._finite import all_finite, check_finite
from localhessian.network._stream import Stream
from localhessian.network._streamed import StreamMatching, match_stream


@overload
def back_match(
    chain: Chain, params: dict[str, Params], x: Stream, y: None, loss: Loss, context: Context = None
) -> StreamMatching: ...
@overload
def back_match(
    chain: Chain, params: dict[str, Params], x: Activations, y: Any, loss: Loss, context: Context = None
) -> BackMatching: ...
def back_match(
    chain: Chain, params: dict[str, Params], x: Any, y: Any, loss: Loss, context: Context = None
) -> BackMatching | StreamMatching:
    """Forward values, displacements and back-matching losses of every block, by gradient solvers.

    delta_{b-1} = -n dl_b/dz_{b-1}: a unit step on the per-sample loss, with the weights of step k.

    Args:
        chain: The network.
        params: The parameters of each block by its name.
        x: Inputs, a pytree with the samples on the leading axis; integers (tokens) are allowed. Or an `lh.Stream` of
            batches of x and y.
        y: What the loss compares with, samples on the leading axis; None beside a stream.
        loss: `loss(z_B, y)` -> per-sample losses of shape `(n,)`; J is their mean.
        context: Handed to every block that takes one; never differentiated.

    Returns:
        A pytree. Works under `jax.jit` and `jax.vmap`; there only shapes are checked, not values. Of a stream an
        `lh.StreamMatching`, which is none: on the host it makes the batches' activations whenever they are needed.

    Raises:
        ValueError: Wrong shapes, an empty batch, a loss that is not per sample, non-finite parameters, data,
            activations or derivatives (with the operation that made them), complex parameters or activations, leaves
            that are no arrays, a block or loss without a forward or a reverse derivative, a model that answers
            differently twice; the message names the block.
        TypeError: `loss` has no hash (a dataclass that is not frozen).
        KeyError: `params` names a block that is not in the chain.

    Cost: two forward passes that linearize (their values must agree), one backward pass, and about log_2 n + 3 jvps for
    the detection of coupling in each block whose program does not prove that there is none; memory for the
    linearization of one block at a time. Shapes are checked once for each set of them, values each time. The local
    Hessians multiply by the same compiled maps; blocks that compute the same share them.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z * w)), lh.Block("b", lambda w, z: z * w)])
        >>> params = {"a": jnp.array([1.0]), "b": jnp.array([2.0])}
        >>> x, y = jnp.array([[0.0], [0.0]]), jnp.array([[1.0], [3.0]])
        >>> matching = lh.back_match(chain, params, x, y, lambda z, y: 0.5 * ((z - y) ** 2).sum(1))
        >>> print(matching.displacements[1].ravel())
        [2. 6.]

    Source: Zhang, Chen & Liu (2018), Procedure 1, with gradient steps.
    """
    if isinstance(x, Stream):
        return match_stream(chain, params, x, y, loss, context, back_match)
    matching = match_batch(chain, params, x, y, loss, context)
    _check_derivatives(matching)
    return matching


@overload
def back_match_partly(
    chain: Chain, params: dict[str, Params], x: Stream, y: None, loss: Loss, context: Context = None
) -> StreamMatching: ...
@overload
def back_match_partly(
    chain: Chain, params: dict[str, Params], x: Activations, y: Any, loss: Loss, context: Context = None
) -> BackMatching: ...
def back_match_partly(
    chain: Chain, params: dict[str, Params], x: Any, y: Any, loss: Loss, context: Context = None
) -> BackMatching | StreamMatching:
    """As `back_match`, for whoever tells what is not finite: a block without a derivative costs no other."""
    if isinstance(x, Stream):
        return match_stream(chain, params, x, y, loss, context, match_batch)
    return match_batch(chain, params, x, y, loss, context)


def _check_derivatives(matching: BackMatching) -> None:
    """Refuse derivatives that are not finite, by a ValueError with the block and the operation."""
    residuals, gradients, y = matching.residuals, matching.gradients, matching.y
    if is_traced(residuals, gradients) or all_finite((residuals, gradients)):
        return
    why = functools.partial(birth, _derivative_of_loss(matching.loss), matching.activations[-1], y)
    what = "the derivative of the loss by the network's output"
    check_finite(what, residuals[-1], "the loss is finite, its derivative is ", why)
    for b, block in reversed(list(enumerate(matching.chain.blocks, start=1))):
        place = matching.place(block.name)
        why = functools.partial(birth, _pullback(block), place.params, place.z, residuals[b], place.context)
        for side, tree in (("parameters", gradients[block.name]), ("input", residuals[b - 1] if b > 1 else None)):
            what = f"the derivative of block `{block.name}` by its {side}"
            check_finite(what, tree, "its output is finite, its derivative is ", why)


def _pullback(block: Any) -> Any:
    """(params, z, cotangent, context) -> the derivatives by floating-point parameters and input."""

    def pull(params: Any, z: Any, cotangent: Any, context: Any) -> Any:
        (weights, rebuild), (inputs, refill) = floating(params), floating(z)
        outputs = lambda weights, inputs: floating_leaves(block(rebuild(weights), refill(inputs), context))
        return jax.vjp(outputs, weights, inputs)[1](floating_leaves(cotangent))

    return pull


def _derivative_of_loss(loss: Loss) -> Any:
    def derivative(z: Any, y: Any) -> Any:
        outputs, rebuild = floating(z)
        return jax.grad(lambda leaves: loss(rebuild(leaves), y).sum())(outputs)

    return derivative
