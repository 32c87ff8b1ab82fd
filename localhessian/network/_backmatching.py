"""Back-matching: displacements of the targets, and the loss that each block is asked to lower.

l_b(W, z) = (1/n) sum_i 1/2 ||z_b^{k+1/2}[i] - F_b(W, z)[i]||^2 for b < B, and l_B(W, z) = J(F_B(W, z), y).

Targets are never stored: z^{k+1/2} = z^k + delta, and z^k swamps delta in rounding where the signal vanishes.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._arguments import expect
from localhessian._brief import named, wrapped
from localhessian._mesh import is_traced, like
from localhessian._programs import compiled, compiled_if_eager, full_precision
from localhessian._tree import floating, floating_leaves, is_concrete, is_floating, pytree, ravel, static
from localhessian._types import Activations, Array, Context, Loss, Params, Scalar
from localhessian.network._chain import Block, Chain
from localhessian.network._coupling import couples_samples, gradients_leak, linearized_loss
from localhessian.network._jacobian import jacobian_of, linearized, root_scale
from localhessian.network._side import ByInput, ByParams, Place, applied, half_square, matching_loss
from localhessian.network._traced import trace, trace_loss
from localhessian.network._validate import admit, same, validate_values


@pytree
class BackMatching:
    """One step of back-matching with gradient solvers (which is back-propagation), at (W^k, z^k).

    Tuples over activations have B + 1 entries: entry b belongs to z_b. Dictionaries have one entry for each block.
    """

    activations: tuple[Activations, ...]
    """(z_0, .., z_B)."""
    residuals: tuple[Activations, ...]
    """r_b = n dJ/dz_b for b = 1..B (without coupling: of each sample's own loss); None for z_0. Zero for integers."""
    gradients: dict[str, Params]
    """dl_b/dW_b = dJ/dW_b (Proposition of docs/theory.md, 2); zero for integer leaves."""
    objective: Scalar
    """J, the mean of the losses of the samples."""
    coupled: dict[str, Array]
    """Boolean: whether the block (of the last block: or the loss) couples its samples, by its program or a probe."""
    params: dict[str, Params]
    y: Any
    context: Context
    chain: Chain = static()
    loss: Loss = static()

    def __repr__(self) -> str:
        """Its blocks, and how many samples; its numbers are the whole network's."""
        return wrapped(
            f"BackMatching({len(self.chain.names)} blocks: {named(self.chain.names)}; {self.samples} samples)"
        )

    @property
    def displacements(self) -> tuple[Activations, ...]:
        """delta_b = z_b^{k+1/2} - z_b^k = -r_b for b = 1..B-1; None for z_0 and z_B, which have no target."""
        return (None, *_of_each(jnp.negative, self.residuals[1:-1]), None)

    @property
    def losses(self) -> dict[str, Scalar]:
        """l_b at (W_b^k, z_{b-1}^k) by block; of the last block, J."""
        names = self.chain.names
        matched = {name: _mean_half_square(r) for name, r in zip(names, self.residuals[1:-1], strict=False)}
        return {**matched, names[-1]: self.objective}

    @property
    def targets(self) -> tuple[Activations, ...]:
        """z_b^{k+1/2} = z_b^k + delta_b, for display: rounding loses small displacements; compute with those."""
        return (None, *_of_each(jnp.subtract, self.activations[1:-1], self.residuals[1:-1]), None)

    @property
    def kinds(self) -> tuple[Block, ...]:
        """For each block the first of the chain that computes the same, without its name: a key of programs."""
        return trace(self.chain, self.params, self.activations[0], self.context).run_as(self.chain)

    def place(self, block: str) -> Place:
        """Where a block is taken: W_b^k, z_{b-1}^k and the context."""
        return Place(self.params[block], self.activations[self.chain.index(block)], self.context)

    @property
    def samples(self) -> int:
        """The number of samples n."""
        return cast(int, jax.tree.leaves(self.activations[0])[0].shape[0])


def match_batch(
    chain: Chain, params: dict[str, Params], x: Activations, y: Any, loss: Loss, context: Context = None
) -> BackMatching:
    """`lh.back_match` of one batch, whose derivatives need not be finite."""
    loss, context = admit(chain, params, x, y, loss, context)
    params = {name: params.get(name, ()) for name in chain.names}
    traced = trace(chain, params, x, context)
    kinds = traced.run_as(chain)
    # The forward pass is by the program that linearizes: equal blocks share it, and none is as large as the network.
    z = [x]
    for name, kind in zip(chain.names, kinds, strict=True):
        z.append(linearized(kind, Place(params[name], z[-1], context))[0])
    activations = tuple(z)
    at_loss = linearized_loss(loss, activations[-1], y)
    cotangent, is_known = at_loss.cotangent, not is_traced(params, x, y, context, activations, at_loss)
    coupled: dict[str, Any] = {}
    residuals, gradients, unlike = [_embed(at_loss.gradient, activations[-1])], {}, []
    for b, kind in reversed(list(enumerate(kinds, start=1))):
        name, before, after = chain.names[b - 1], activations[b - 1], activations[b]
        place = Place(params[name], before, context)
        again, jvp = linearized(kind, place)
        if is_known and not same(after, again):
            unlike.append(name)
        gradients[name] = _gradient(jvp, kind, place, cotangent)
        by_input = jacobian_of(jvp, ByInput(kind), place) if floating_leaves(before) else None
        coupled[name] = np.False_ if traced.apart[b - 1] else couples_samples(by_input, before, after)
        if by_input is not None and b > 1:
            cotangent = by_input.rmv(cotangent)
            residuals.insert(0, _as_tree(before, cotangent))
    if not trace_loss(loss, activations[-1], y):
        coupled[chain.names[-1]] |= gradients_leak(at_loss.moved, activations[-1])
    if is_known:
        residuals, gradients, coupled = _on_device((residuals, gradients, coupled))
    matching = BackMatching(
        activations, (None, *residuals), gradients, at_loss.objective, coupled, params, y, context, chain, loss
    )
    if is_known:
        validate_values(chain, params, y, context, activations, at_loss.losses, loss, unlike)
    return matching


def _gradient(jvp: Partial, kind: Block, place: Place, cotangent: Array) -> Params:
    """dl_b/dW_b, by the map whose Gram matrix is H_W."""
    if not floating_leaves(place.params):
        return jax.tree.map(jnp.zeros_like, place.params)
    side = ByParams(kind)
    gradient = jacobian_of(jvp, side, place).rmv(cotangent)
    return like(_as_tree(place.params, gradient, root_scale(side, place)), place.params)


def _as_tree(like: Any, vector: Array, factor: float = 1.0) -> Any:
    """A vector of floating-point leaves, times a number, as a tree of this shape; zero for integer leaves."""
    if not is_concrete(like, vector) or vector.committed or jax.default_backend() != "cpu":
        return _scaled_tree(like, vector, factor)
    # In shared memory there is no need of a program for each structure.
    numbers, parts = factor * np.asarray(vector), []
    for leaf in floating_leaves(like):
        parts.append(numbers[: leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        numbers = numbers[leaf.size :]
    return _embed(parts, like)


@compiled
def _scaled_tree(like: Any, vector: Array, factor: Any) -> Any:
    return _embed([factor * leaf for leaf in ravel(floating_leaves(like))[1](vector)], like)


def back_matching_loss(matching: BackMatching, block: str, /) -> Callable[[Params, Activations], Scalar]:
    """The back-matching loss l_b(W, z) of one block, to be differentiated or minimized.

    l_b(W, z) = (1/n) sum_i 1/2 ||delta_b[i] + F_b(W^k, z^k)[i] - F_b(W, z)[i]||^2, of the last block J(F_B(W, z), y).

    Args:
        matching: From `lh.back_match`.
        block: Its name.

    Returns:
        A function of the block's parameters and input, to a scalar; a `Partial`, so it passes through `jax.jit`. The
        center F_b(W^k, z^k) is computed in the same program, so that small displacements survive (docs/theory.md, 2).

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
    expect("matching", matching, BackMatching, "what `lh.back_match` returns for one batch")
    expect("block", block, str, "the name of a block")
    b = matching.chain.index(block) + 1
    where = matching.chain.blocks[b - 1]
    if b == len(matching.chain):
        return Partial(_LastLoss(where, matching.loss), matching.y, matching.context)
    return Partial(_MatchingLoss(where), matching.place(block), matching.displacements[b])


@dataclasses.dataclass(frozen=True)
class _LastLoss:
    block: Block
    loss: Loss

    @full_precision()
    def __call__(self, y: Any, context: Context, params: Params, z: Activations) -> Scalar:
        return self.loss(applied(self.block, Place(params, z, context)), y).mean()


@dataclasses.dataclass(frozen=True)
class _MatchingLoss:
    block: Block

    @full_precision()
    def __call__(self, place: Place, displacement: Activations, params: Params, z: Activations) -> Scalar:
        there = Place(params, z, place.context)
        return matching_loss(self.block, place, displacement)(there) / there.samples


@compiled_if_eager(static_argnums=0)
def _of_each(function: Callable[..., Any], *trees: tuple[Activations, ...]) -> tuple[Activations, ...]:
    """For each block a function of the floating-point leaves; other leaves are those of the first tree."""

    def mapped(tree: Any, *rest: Any) -> Any:
        leaves, rebuild = floating(tree)
        of_rest = (floating_leaves(other) for other in rest)
        return rebuild([function(*them) for them in zip(leaves, *of_rest, strict=True)])

    return tuple(mapped(*them) for them in zip(*trees, strict=True))


def _embed(values: Iterable[Any], like: Any) -> Any:
    """Floating-point leaves in their places; zero for the others."""
    leaves, treedef = jax.tree.flatten(like)
    rest = iter(values)
    return jax.tree.unflatten(treedef, [next(rest) if is_floating(leaf) else jnp.zeros_like(leaf) for leaf in leaves])


def _on_device(tree: Any) -> Any:
    """With arrays of the host handed over, all at once: no program for each shape."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if not isinstance(leaf, jax.Array)]
    for i, leaf in zip(places, jax.device_put([leaves[i] for i in places]), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(treedef, leaves)


@compiled
def _mean_half_square(residual: Activations) -> Scalar:
    leaves = floating_leaves(residual)
    return half_square(leaves) / leaves[0].shape[0]
