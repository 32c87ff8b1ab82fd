"""Back-matching: displacements of the targets, and the loss that each block is asked to lower.

l_b(W, z) = (1/n) sum_i 1/2 ||z_b^{k+1/2}[i] - F_b(W, z)[i]||^2 for b < B, and l_B(W, z) = J(F_B(W, z), y).

Targets are never stored: z^{k+1/2} = z^k + delta, and z^k swamps delta in rounding where the signal vanishes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from localhessian._tree import floating, is_concrete, pytree, static
from localhessian._types import Activations, Array, Context, Loss, Params, Scalar
from localhessian.network._chain import Block, Chain
from localhessian.network._coupling import couples_samples
from localhessian.network._validate import run_chain, validate_shapes, validate_values


@pytree
class BackMatching:
    """One step of back-matching with gradient solvers (which is back-propagation), at (W^k, z^k).

    Tuples over activations have B + 1 entries: entry b belongs to z_b. Dictionaries have one entry for each block.
    """

    activations: tuple[Activations, ...]
    """(z_0, .., z_B)."""
    displacements: tuple[Activations, ...]
    """delta_b = z_b^{k+1/2} - z_b^k for b = 1..B-1; None for z_0 and z_B, which have no target. Zero for integers."""
    residuals: tuple[Activations, ...]
    """r_b = n dJ/dz_b for b = 1..B (without coupling: of each sample's own loss); None for z_0. -delta_b for b < B."""
    gradients: dict[str, Params]
    """dl_b/dW_b = dJ/dW_b (Proposition of docs/theory.md, 2); zero for integer leaves."""
    losses: dict[str, Scalar]
    """l_b at (W_b^k, z_{b-1}^k); of the last block, J."""
    coupled: dict[str, Array]
    """Boolean: whether the block (of the last block: or the loss) couples its samples, found by a probe."""
    params: dict[str, Params]
    y: Any
    context: Context
    chain: Chain = static()
    loss: Loss = static()

    @property
    def targets(self) -> tuple[Activations, ...]:
        """z_b^{k+1/2} = z_b^k + delta_b, for display: rounding loses small displacements; compute with those."""
        return tuple(
            None if delta is None else jax.tree.map(jnp.add, z, delta)
            for z, delta in zip(self.activations, self.displacements, strict=True)
        )

    @property
    def samples(self) -> int:
        """The number of samples n."""
        return jax.tree.leaves(self.activations[0])[0].shape[0]


def back_match(
    chain: Chain, params: dict[str, Params], x: Activations, y: Any, loss: Loss, context: Context = None
) -> BackMatching:
    """Forward values, displacements and back-matching losses of every block, by gradient solvers.

    delta_{b-1} = -n dl_b/dz_{b-1}: a unit step on the per-sample loss, with the weights of step k.

    Args:
        chain: The network.
        params: The parameters of each block by its name.
        x: Inputs, a pytree with the samples on the leading axis; integers (tokens) are allowed.
        y: What the loss compares with, samples on the leading axis.
        loss: `loss(z_B, y)` -> per-sample losses of shape `(n,)`; J is their mean.
        context: Handed to every block that takes one; never differentiated.

    Returns:
        A pytree. Works under `jax.jit` and `jax.vmap`; there only shapes are checked, not values.

    Raises:
        ValueError: Wrong shapes, an empty batch, a loss that is not per sample, non-finite parameters, data or
            activations, a model that answers differently twice; the message names the block.
        KeyError: `params` names a block that is not in the chain.

    Cost: three forward passes (one for the backward pass, one for the check of values) and one backward pass, and
    1 + ceil(log_16 n) jvps for the detection of coupling.

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
    context = chain.context_for(x, context)
    validate_shapes(chain, params, x, y, loss, context)
    params = {name: params.get(name, ()) for name in chain.names}
    # One program for each kind of block: equal blocks share it, and none is as large as the network.
    activations = run_chain(chain, params, x, context)
    losses, residual = _loss_and_residual(loss, activations[-1], y)
    residuals: list[Activations] = [residual]
    displacements: list[Activations] = [None]
    gradients, values, coupled = {}, {}, {}
    for b in range(len(chain), 0, -1):
        block, z, at_last = chain.blocks[b - 1], activations[b - 1], b == len(chain)
        pulled = _pull_back(block.anonymous, params[block.name], z, context, residuals[0])
        gradient, value, for_input, displacement = pulled
        gradients[block.name] = gradient
        values[block.name] = jnp.mean(losses) if at_last else value
        coupled[block.name] = couples_samples(block, params[block.name], z, context, loss if at_last else None, y)
        residuals.insert(0, for_input if b > 1 else None)
        displacements.insert(0, displacement if b > 1 else None)
    matching = BackMatching(
        activations, tuple(displacements), tuple(residuals), gradients, values, coupled, params, y, context, chain, loss
    )
    if is_concrete(params, x, y, context):
        validate_values(matching.chain, params, y, context, activations, losses)
    return matching


@jax.jit(static_argnums=0)
def _loss_and_residual(loss: Loss, z: Activations, y: Any) -> tuple[Array, Activations]:
    """Per-sample losses, and r_B = n dJ/dz_B."""
    outputs, rebuild = floating(z)

    def total(leaves):
        losses = loss(rebuild(leaves), y)
        return losses.sum(), losses

    gradient, losses = jax.grad(total, has_aux=True)(outputs)
    return losses, _embed(gradient, z)


@jax.jit(static_argnums=0)
def _pull_back(block: Block, params: Params, z: Activations, context: Context, residual: Activations):
    """dl_b/dW_b, l_b of a block with a target, r_{b-1} and delta_{b-1}."""
    for_params, for_input = pull_back(block, params, z, context, residual)
    n = jax.tree.leaves(z)[0].shape[0]
    leaves, rebuild = floating(for_params)
    displacement = jax.tree.map(jnp.negative, for_input)
    return rebuild([leaf / n for leaf in leaves]), _half_square(residual) / n, for_input, displacement


def pull_back(
    block: Block, params: Params, z: Activations, context: Context, cotangent: Activations
) -> tuple[Params, Activations]:
    """The vjp of a block at (W, z): cotangents of its parameters and of its input, zero for integer leaves."""
    weights, rebuild_params = floating(params)
    inputs, rebuild_input = floating(z)

    def outputs(weights, inputs):
        return floating(block(rebuild_params(weights), rebuild_input(inputs), context))[0]

    _, pull = jax.vjp(outputs, weights, inputs)
    for_weights, for_inputs = pull(floating(cotangent)[0])
    return _embed(for_weights, params), _embed(for_inputs, z)


def back_matching_loss(matching: BackMatching, block: str, /) -> Callable[[Params, Activations], Scalar]:
    """The back-matching loss l_b(W, z) of one block, to be differentiated or minimized.

    l_b(W, z) = (1/n) sum_i 1/2 ||delta_b[i] + F_b(W^k, z^k)[i] - F_b(W, z)[i]||^2, of the last block J(F_B(W, z), y).

    Args:
        matching: From `lh.back_match`.
        block: Its name.

    Returns:
        A function of the block's parameters and input, to a scalar; a `Partial`, so it passes through `jax.jit`. The
        center F_b(W^k, z^k) is computed in the same program, so that small displacements survive (THEORY section 2).

    Raises:
        KeyError: No block has that name.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: z * w), lh.Block("b", lambda w, z: z * w)])
        >>> params = {"a": jnp.array([1.0]), "b": jnp.array([2.0])}
        >>> x, y = jnp.array([[1.0]]), jnp.array([[1.0]])
        >>> matching = lh.back_match(chain, params, x, y, lambda z, y: 0.5 * ((z - y) ** 2).sum(1))
        >>> print(jax.grad(lh.back_matching_loss(matching, "a"))(params["a"], x))
        [2.]

    Source: Zhang, Chen & Liu (2018), eq. 3 and 4; scaling by 1/n as in docs/theory.md, 2.
    """
    b = matching.chain.index(block) + 1
    where = matching.chain.blocks[b - 1]
    if b == len(matching.chain):
        return Partial(_LastLoss(where, matching.loss), matching.y, matching.context)
    point = (matching.params[block], matching.activations[b - 1])
    return Partial(_MatchingLoss(where), *point, matching.displacements[b], matching.context)


@dataclasses.dataclass(frozen=True)
class _LastLoss:
    block: Block
    loss: Loss

    def __call__(self, y, context, params, z):
        return self.loss(self.block(params, z, context), y).mean()


@dataclasses.dataclass(frozen=True)
class _MatchingLoss:
    block: Block

    def __call__(self, params0, z0, displacement, context, params, z):
        center = floating(self.block(params0, z0, context))[0]
        value = floating(self.block(params, z, context))[0]
        at_center = _equal((params0, z0), (params, z))
        squares = []
        for delta, c, f in zip(floating(displacement)[0], center, value, strict=True):
            # At the expansion point c = f but for the compiler's rounding, which would swamp a small delta.
            rounding = jax.lax.stop_gradient(jnp.where(at_center, c - f, 0))
            squares.append(0.5 * jnp.sum((delta + (jax.lax.stop_gradient(c) - f - rounding)) ** 2))
        return sum(squares[1:], start=squares[0]) / value[0].shape[0]


def _equal(one: Any, two: Any) -> Array:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return jnp.all(jnp.stack([jnp.all(a == b) for a, b in pairs]))


def _embed(values: list[Array], like: Any) -> Any:
    zeros = jax.tree.map(jnp.zeros_like, like)
    return floating(zeros)[1](values)


def _half_square(tree: Any) -> Scalar:
    squares = [0.5 * jnp.sum(leaf**2) for leaf in floating(tree)[0]]
    return sum(squares[1:], start=squares[0])
