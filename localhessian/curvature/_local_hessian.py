"""Local Hessians as operators: H_W = d^2 l_b / dW_b^2 and H_z = d^2 (n l_b) / dz_{b-1}^2 at (W^k, z^k).

With F the block, J its Jacobian, S = I (last block: the loss Hessian) and r the residual:
    full = Gauss-Newton part + residual part,   Gauss-Newton = s J^T S J,   residual = s sum_i r[i] . d^2 F[i],
    s = 1/n for H_W and 1 for H_z.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect, expect_choice, expect_count, expect_function
from localhessian._mesh import samples_like
from localhessian._programs import at_once
from localhessian._tree import floating_leaves, is_concrete, shapes, size, to_device
from localhessian._types import Array
from localhessian.curvature._alike import answers_alike, multiply_alike
from localhessian.curvature._loss import curvature
from localhessian.curvature._recipe import Layout, LocalHessian, Part, Point, Recipe, Rooted
from localhessian.curvature._streamed import streamed_hessian
from localhessian.linalg import SymmetricOperator, gram, repeated
from localhessian.network import (
    SIDES,
    Arrangement,
    BackMatching,
    Block,
    StreamMatching,
    Wrt,
    contexts_of,
    cut_matching,
    jacobian,
    meant,
    rows,
    runs_alone,
    sample_indices,
)


def local_hessian(
    matching: BackMatching | StreamMatching,
    block: str,
    /,
    wrt: Wrt = "params",
    part: Part = "gauss_newton",
    *,
    samples: int | Sequence[int] | Array | None = None,
    select: Callable[[str], bool] | None = None,
    batch_size: int | None = None,
) -> SymmetricOperator:
    """A local Hessian of one block, as a matrix-free symmetric operator.

    H_W = d^2 l_b / dW_b^2,   H_z = d^2 (n l_b) / dz_{b-1}^2,   at the parameters and activations of `matching`.

    Args:
        matching: From `lh.back_match`. Of a stream H_W is that of all its samples, summed batch after batch in every
            product, which runs on the host; H_z is that of the `samples`.
        block: The block's name.
        wrt: `"params"` for H_W, `"input"` for H_z.
        part: `"gauss_newton"`: positive semi-definite (last block: if the loss is convex in z_B), with its factor R,
            H = R^T R. `"full"`: what the back-matching loss has. `"residual"`: the difference; can be indefinite.
        samples: Of H_z only. None: the whole batch, order n d. An index: that sample's H_z, order d. A sequence of
            indices (in any order, also repeated), or a boolean mask of the batch: as many independent operators, whose
            products take and give a leading axis. Each is the sample's diagonal block in the batch: the block runs on
            the samples alone where its values and products prove that to be the same, else on the whole batch, and the
            loss always on the whole batch. Under `jax.jit` that is the block too; indices that are traced themselves
            cost a product of the batch each.
        select: Of H_W only. Keeps the parameters for whose path (`"['kernel']"`) it returns True.
        batch_size: Of H_W only. Linearize so many samples at a time, as those of a stream.

    Returns:
        An operator in the flat order of `jax.flatten_util.ravel_pytree` (floating-point leaves; samples: of one
        sample's z). Products cost one jvp and one vjp of the block, the set-up (`prepare`) one linearization; of a
        stream each product costs both, and the forward pass up to the block, for every batch.

    Raises:
        KeyError: No block has that name.
        ValueError: The block has no (selected) parameters or no floating-point input; `samples` on a block that
            couples its samples, or out of range; an unknown `wrt` or `part`; a stream whose batches couple their
            samples.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: z @ w), lh.Block("b", lambda w, z: z @ w)])
        >>> params = {"a": jnp.array([[1.0, 0.0], [0.0, 3.0]]), "b": jnp.ones((2, 1))}
        >>> x, y = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.zeros((2, 1))
        >>> matching = lh.back_match(chain, params, x, y, lambda z, y: 0.5 * ((z - y) ** 2).sum(1))
        >>> print(lh.local_hessian(matching, "a", "input", samples=0).to_dense())
        [[1. 0.]
         [0. 9.]]

    Source: Zhang, Chen & Liu (2018), section 3; the parts and the scaling as in docs/theory.md, 3.
    """
    expect("matching", matching, (BackMatching, StreamMatching), "what `lh.back_match` returns")
    expect("block", block, str, "the name of a block")
    b = matching.chain.index(block) + 1
    _check_settings(wrt, part, select)
    if batch_size is not None:
        matching = _in_parts(matching, wrt, batch_size)
    if isinstance(matching, StreamMatching):
        return streamed_hessian(matching, block, wrt, part, samples, select, local_hessian)
    kind, keep, index, arrangement = SIDES[wrt], None, None, Arrangement.BATCH
    if kind.per_sample:
        if select is not None:
            raise ValueError('`select` belongs to wrt="params": it chooses parameters.')
        z = matching.activations[b - 1]
        if not floating_leaves(z):
            raise ValueError(
                f"the input of block `{block}` holds integers ({shapes(z)}), which have no derivative, so its H_z does "
                'not exist: ask for wrt="params", or for H_z of a later block.'
            )
        if samples is not None:
            _check_uncoupled(matching, block, samples)
            index, is_one = sample_indices(samples, matching.samples)
            arrangement = Arrangement.ONE if is_one else Arrangement.ROWS
    else:
        if samples is not None:
            raise ValueError('`samples` belongs to wrt="input": H_W is one matrix for the whole batch.')
        keep = _selected(matching, block, select)
    side = kind(matching.kinds[b - 1], keep, arrangement)
    recipe = Recipe(side, matching.loss if b == len(matching.chain) else None, part)
    label = f"{side.symbol} of block `{block}` ({part.replace('_', '-')})"
    if index is None:
        return _operator(recipe, _whole(matching, b), matching.y, label)
    if arrangement is Arrangement.ONE:
        return _of_samples(matching, b, recipe, index, label)
    if not is_concrete(index):  # any sample may come twice
        with at_once():
            every = jnp.arange(matching.samples)
        everything = _of_samples(matching, b, recipe, every, label)
        return repeated(everything, index)
    once, places = np.unique(index, return_inverse=True)
    if len(once) == len(places):
        return _of_samples(matching, b, recipe, index, label)
    with at_once():
        index, spread = to_device(once), to_device(places.ravel())
    return repeated(_of_samples(matching, b, recipe, index, label), spread)


def _check_settings(wrt: Wrt, part: Part, select: Any) -> None:
    for name, value, choices in (("wrt", wrt, tuple(SIDES)), ("part", part, get_args(Part))):
        expect_choice(name, value, choices, f"one of {', '.join(map(repr, choices))}")
    if select is not None:
        expect_function("select", select, "a function of the path of a parameter", takes=1)


def _in_parts(matching: BackMatching | StreamMatching, wrt: Wrt, batch_size: int) -> StreamMatching:
    expect_count("batch_size", batch_size, 1)
    if SIDES[wrt].per_sample:
        raise ValueError('`batch_size` belongs to wrt="params": an H_z is that of its samples, so name fewer of them.')
    if isinstance(matching, StreamMatching):
        raise ValueError("`batch_size` cuts one batch: say it to the stream, `lh.Stream(..., batch_size=...)`.")
    return cut_matching(matching, batch_size)


def _operator(recipe: Recipe, point: Point, y: Any, label: str) -> SymmetricOperator:
    factor, layout = None, None
    if recipe.part == "gauss_newton":
        factor = jacobian(recipe.side, point.place, label)
    if recipe.loss is not None and recipe.part != "residual":
        found = curvature(recipe.loss, point.outputs, y, point.index)
        leaves = tuple((leaf.shape, leaf.dtype) for leaf in meant(point.outputs, point.index))
        layout = Layout(leaves, recipe.side.arrangement)
        point = dataclasses.replace(point, curvature=found.hessian)
        if factor is not None:
            factor = None if found.root is None else Rooted(factor, found.root, layout, **factor.form)
    if factor is not None and (layout is None or found.product is None):
        return gram(factor)
    d, _, dtype, batch = recipe.side.sizes(point.place)
    return LocalHessian(point, factor, recipe, layout, size=d, dtype=dtype, batch=batch, label=label)


def _whole(matching: BackMatching, b: int) -> Point:
    return Point(matching.place(matching.chain.names[b - 1]), matching.residuals[b], matching.activations[b])


# ---- some samples


def _check_uncoupled(matching: BackMatching, block: str, samples: Any) -> None:
    coupled = matching.coupled[block]
    if is_concrete(coupled) and bool(coupled):
        got = f"samples={samples}" if np.ndim(samples) == 0 else "samples"
        raise ValueError(
            f"block `{block}` couples its samples (batch normalization in training mode, or the loss), so `{got}` has "
            "no meaning: leave `samples` out for the Hessian of the whole batch, or run the model in inference mode."
        )


def _of_samples(matching: BackMatching, b: int, recipe: Recipe, index: Array, label: str) -> SymmetricOperator:
    """The samples alone where that is proven to be the same, else in their batch; no sample twice."""
    in_batch = _in_batch(matching, b, index)
    if is_concrete(in_batch):
        with at_once():
            for alone in _alone(matching, b, index):
                if answers_alike(recipe.side, in_batch.place, alone.place, in_batch.outputs):
                    operator = _operator(recipe, alone, matching.y, label)
                    # The Jacobian is compared already, and S is that of the batch.
                    if recipe.part == "gauss_newton" or multiply_alike(
                        operator, _operator(recipe, in_batch, matching.y, label)
                    ):
                        return operator
    elif is_concrete(index) and np.array_equal(np.asarray(index), np.arange(matching.samples)):
        # Every sample in its order: nothing need be taken out of the batch.
        in_batch = dataclasses.replace(in_batch, place=dataclasses.replace(in_batch.place, index=None), index=None)
    elif _proven_alone(matching, b, recipe.side.block, len(index)):
        z, residual = rows((in_batch.place.z, in_batch.residual), index)
        place = dataclasses.replace(in_batch.place, z=z, index=None)
        in_batch = dataclasses.replace(in_batch, place=place, residual=residual)
    return _operator(recipe, in_batch, matching.y, label)


def _proven_alone(matching: BackMatching, b: int, block: Block, count: int) -> bool:
    """Whether programs alone, whose numbers are not known, prove that some samples need no batch around them."""
    coupled, place = matching.coupled[matching.chain.names[b - 1]], _whole(matching, b).place
    is_apart = is_concrete(coupled) and not bool(coupled)
    return is_apart and runs_alone(block, place.params, place.z, place.context, count)


def _in_batch(matching: BackMatching, b: int, index: Array) -> Point:
    """The samples meant, of a block that runs on the whole batch."""
    point = _whole(matching, b)
    # Where coupling is known only at run time, it poisons the numbers instead of passing unseen.
    coupled = matching.coupled[matching.chain.names[b - 1]]
    z = jax.tree.map(lambda leaf: _poisoned(leaf, coupled), point.place.z)
    return dataclasses.replace(point, place=dataclasses.replace(point.place, z=z, index=index), index=index)


def _alone(matching: BackMatching, b: int, index: Array) -> Iterator[Point]:
    """The samples without the rest of their batch, with what may be their context."""
    point = _whole(matching, b)
    z, residual = samples_like(rows((point.place.z, point.residual), index), jax.tree.leaves(point.place.z)[0])
    x, n = matching.activations[0], matching.samples
    for context in contexts_of(matching.chain, x, matching.context, index, n, matching.params):
        place = dataclasses.replace(point.place, z=z, context=context)
        yield dataclasses.replace(point, place=place, residual=residual, index=index)


def _poisoned(leaf: Array, coupled: Any) -> Array:
    if is_concrete(coupled) and not bool(coupled):
        return leaf
    return jnp.where(coupled, jnp.nan, leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


# ---- what there is


def _selected(matching: BackMatching, block: str, select: Any) -> tuple[bool, ...] | None:
    params = matching.params[block]
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    places = [jax.tree_util.keystr(path) for path, leaf in paths if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    if not size(floating_leaves(params)):
        raise ValueError(
            f'block `{block}` has no floating-point parameters, so its H_W does not exist: ask for wrt="input".'
        )
    if select is None:
        return None
    keep = tuple(bool(select(place)) for place in places)
    if not any(keep):
        raise ValueError(
            f"`select` keeps no parameter of block `{block}`, whose parameters are {', '.join(places)}: "
            "return True for at least one."
        )
    return keep
