"""Local Hessians as operators: H_W = d^2 l_b / dW_b^2 and H_z = d^2 (n l_b) / dz_{b-1}^2 at (W^k, z^k).

With F the block, J its Jacobian, S = I (last block: the loss Hessian) and r the residual:
    full = Gauss-Newton part + residual part,   Gauss-Newton = s J^T S J,   residual = s sum_i r[i] . d^2 F[i],
    s = 1/n for H_W and 1 for H_z.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._tree import floating, is_concrete, shapes, size
from localhessian._types import Array
from localhessian.curvature._loss import loss_factor
from localhessian.curvature._recipe import Layout, OperatorSetup, Point, Recipe, with_root
from localhessian.linalg import SymmetricOperator, call, gram, lazy_operator
from localhessian.network import BackMatching, Place, Variables, jacobian

Wrt = Literal["params", "input"]
Part = Literal["gauss_newton", "full", "residual"]


def local_hessian(
    matching: BackMatching,
    block: str,
    /,
    wrt: Wrt = "params",
    part: Part = "gauss_newton",
    *,
    samples: int | Sequence[int] | Array | None = None,
    select: Callable[[str], bool] | None = None,
) -> SymmetricOperator:
    """A local Hessian of one block, as a matrix-free symmetric operator.

    H_W = d^2 l_b / dW_b^2,   H_z = d^2 (n l_b) / dz_{b-1}^2,   at the parameters and activations of `matching`.

    Args:
        matching: From `lh.back_match`.
        block: The block's name.
        wrt: `"params"` for H_W, `"input"` for H_z.
        part: `"gauss_newton"`: positive semi-definite (last block: if the loss is convex in z_B), with its factor R,
            H = R^T R. `"full"`: what the back-matching loss has. `"residual"`: the difference; can be indefinite.
        samples: Of H_z only. None: the whole batch, order n d. An index: that sample's H_z, order d. A sequence of
            indices: as many independent operators, whose products take and give a leading axis.
        select: Of H_W only. Keeps the parameters for whose path (`"['kernel']"`) it returns True.

    Returns:
        An operator in the flat order of `jax.flatten_util.ravel_pytree` (floating-point leaves; samples: of one
        sample's z). Products cost one jvp and one vjp of the block, the set-up (`prepare`) one linearization.

    Raises:
        KeyError: No block has that name.
        ValueError: The block has no (selected) parameters or no floating-point input; `samples` on a block that
            couples its samples, or out of range; an unknown `wrt` or `part`.

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
    b = matching.chain.index(block) + 1
    _check_choice("wrt", wrt, ("params", "input"))
    _check_choice("part", part, ("gauss_newton", "full", "residual"))
    if wrt == "params":
        if samples is not None:
            raise ValueError('`samples` belongs to wrt="input": H_W is one matrix for the whole batch.')
        keep = _selected(matching, block, select)
        point, axes = _whole(matching, b), None
    else:
        if select is not None:
            raise ValueError('`select` belongs to wrt="params": it chooses parameters.')
        _check_input(matching, block, b)
        keep = None
        point, axes = _whole(matching, b), None
        if samples is not None:
            point, axes = _some_samples(matching, block, b, samples)
    last = b == len(matching.chain)
    scale = 1 / matching.samples if wrt == "params" else 1.0
    loss = matching.loss if last else None
    variables = Variables(matching.chain.blocks[b - 1].anonymous, wrt, keep, axes)
    symbol = "H_W" if wrt == "params" else "H_z"
    label = f"{symbol} of block `{block}` ({part.replace('_', '-')})"
    return _operator(Recipe(variables, loss, part, scale), point, label)


def _operator(recipe: Recipe, point: Point, label: str) -> SymmetricOperator:
    if recipe.part == "gauss_newton":
        factor = jacobian(recipe.variables, recipe.scale, point.place, label)
        if recipe.loss is None:
            return gram(factor)
        outputs, y = _outputs(recipe.variables.block, point.place), point.y
        if point.place.index is not None:
            outputs, y = jax.tree.map(lambda leaf: leaf[point.place.index], (outputs, y))
        root = loss_factor(recipe.loss, outputs, y)
        if root is not None:
            leaves = tuple((leaf.shape, leaf.dtype) for leaf in floating(outputs)[0])
            return gram(with_root(factor, root, Layout(leaves, recipe.variables.samples)))
    d, _, dtype, batch = recipe.variables.sizes(point.place)
    return lazy_operator(Partial(call, Partial(OperatorSetup(recipe), point)), d, dtype, batch, label)


def _whole(matching: BackMatching, b: int) -> Point:
    name = matching.chain.names[b - 1]
    place = Place(matching.params[name], matching.activations[b - 1], matching.context)
    return Point(place, matching.residuals[b], matching.y)


def _some_samples(matching: BackMatching, block: str, b: int, samples) -> tuple[Point, str]:
    point = _whole(matching, b)
    coupled = matching.coupled[block]
    if is_concrete(coupled) and bool(coupled):
        got = f"samples={samples}" if np.ndim(samples) == 0 else "samples"
        raise ValueError(
            f"block `{block}` couples its samples (batch normalization in training mode, or the loss), so `{got}` has "
            "no meaning: leave `samples` out for the Hessian of the whole batch, or run the model in inference mode."
        )
    n = matching.samples
    if is_concrete(samples) and (np.size(samples) == 0 or np.any(np.asarray(samples) >= n) or np.min(samples) < -n):
        raise ValueError(f"`samples` must be indices into the {n} samples of the batch, got {samples}.")
    index = jnp.atleast_1d(jnp.asarray(samples)) % n
    axes = "one" if np.ndim(samples) == 0 else "many"
    if is_concrete(point, index):
        cut = _cut(matching, point, index)
        if cut and _answers_alike(matching.chain.blocks[b - 1].anonymous, point.place, cut.place, index):
            return cut, axes
    # Where coupling is known only at run time, it poisons the numbers instead of passing unseen.
    z = jax.tree.map(lambda leaf: _poisoned(leaf, coupled), point.place.z)
    return dataclasses.replace(point, place=dataclasses.replace(point.place, z=z, index=index)), axes


def _cut(matching: BackMatching, point: Point, index: Array) -> Point | None:
    """The samples alone; None where a traced chain does not take so few."""
    few = (point.place.z, point.residual, point.y, matching.activations[0])
    z, residual, y, x = jax.tree.map(lambda leaf: leaf[index], few)
    try:
        context = matching.chain.context_for(x, point.place.context, matching.params)
    except (TypeError, ValueError):
        return None
    return Point(dataclasses.replace(point.place, z=z, context=context), residual, y)


def _answers_alike(block, whole: Place, cut: Place, index: Array) -> bool:
    """Whether the block takes the few samples alone (no shapes baked in, no per-sample context) and means the same."""
    try:
        few = jax.eval_shape(block, cut.params, cut.z, cut.context)
    except (TypeError, ValueError):
        return False
    if not all(leaf.shape[:1] == index.shape for leaf in jax.tree.leaves(few)):
        return False
    pairs = zip(floating(_outputs(block, cut))[0], floating(_outputs(block, whole))[0], strict=True)
    return all(_near(a, w[index]) for a, w in pairs)


@jax.jit(static_argnums=0)
def _outputs(block, place: Place):
    return block(place.params, place.z, place.context)


def _near(a: Array, b: Array) -> bool:
    tolerance = 1e3 * float(jnp.finfo(a.dtype).eps)
    return a.shape == b.shape and bool(jnp.max(jnp.abs(a - b)) <= tolerance * jnp.max(jnp.abs(b)))


def _poisoned(leaf: Array, coupled: Array) -> Array:
    return jnp.where(coupled, jnp.nan, leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _selected(matching: BackMatching, block: str, select) -> tuple[bool, ...] | None:
    params = matching.params[block]
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    places = [jax.tree_util.keystr(path) for path, leaf in paths if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    if not size(floating(params)[0]):
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


def _check_input(matching: BackMatching, block: str, b: int) -> None:
    z = matching.activations[b - 1]
    if not floating(z)[0]:
        raise ValueError(
            f"the input of block `{block}` holds integers ({shapes(z)}), which have no derivative, so its H_z does "
            'not exist: ask for wrt="params", or for H_z of a later block.'
        )


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
