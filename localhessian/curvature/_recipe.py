"""How a local Hessian is multiplied: static configuration (`Recipe`) applied to data (`Point`).

A recipe is hashable and holds no block name, so equal blocks share their compiled programs. Where H = R^T R with R the
scaled Jacobian of the block, R is the one that back-matching multiplied by.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from localhessian._tree import pytree
from localhessian._types import Activations, Array, Loss
from localhessian.curvature._root import Root
from localhessian.linalg import LinearMap, SymmetricOperator
from localhessian.network import Arrangement, Place, Side, View, curved, displaced

Part = Literal["gauss_newton", "full", "residual"]


@pytree
class Point:
    """Where the local Hessian is taken: everything that is numbers."""

    place: Place
    residual: Activations
    """Of the samples meant, where the block runs on them alone; else of all."""
    outputs: Activations
    """z_b of the whole batch."""
    index: Array | None = None
    """The samples meant; None for all."""
    curvature: Partial | None = None
    """Of the last block: leaves of the samples meant -> S times them."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is differentiated and by what."""

    side: Side
    loss: Loss | None
    """Of the last block; None before it."""
    part: Part


def with_root(jacobian: LinearMap, root: Root, layout: "Layout") -> LinearMap:
    """L^T R of the last block, with S = L L^T its loss Hessian."""
    forward = Partial(_Rooted(layout, transposed=False), jacobian.forward, root)
    backward = Partial(_Rooted(layout, transposed=True), jacobian.backward, root)
    setup = None if jacobian.setup is None else Partial(_SetupWithRoot(layout), jacobian.setup, root)
    return dataclasses.replace(jacobian, forward=forward, backward=backward, setup=setup)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How output vectors stand for leaves of z_B."""

    leaves: tuple[tuple[tuple[int, ...], Any], ...]
    """Shape and dtype of each floating-point leaf of the samples meant."""
    arrangement: Arrangement

    def through(self, function: Callable[[list[Array]], list[Array]], vector: Array) -> Array:
        """A function of leaves on vectors."""
        unravel = self.arrangement.lay([jnp.zeros(shape, dtype) for shape, dtype in self.leaves])[1]
        return self.arrangement.lay(function(unravel(vector)))[0]


@dataclasses.dataclass(frozen=True)
class _Rooted:
    """L^T R v, or R^T L u."""

    layout: Layout
    transposed: bool

    def __call__(self, product: Partial, root: Root, vector: Array) -> Array:
        if self.transposed:
            return product(self.layout.through(root.mv, vector))
        return self.layout.through(root.transpose_mv, product(vector))


@dataclasses.dataclass(frozen=True)
class _SetupWithRoot:
    layout: Layout

    def __call__(self, setup: Partial, root: Root) -> LinearMap:
        return with_root(setup(), root, self.layout)


@dataclasses.dataclass(frozen=True)
class OperatorSetup:
    """() -> a local Hessian that is not multiplied by a factor: the full one, its residual part, J^T S J."""

    recipe: Recipe
    layout: Layout | None

    def __call__(self, point: Point, factor: LinearMap | None) -> SymmetricOperator:
        """Linearize at the point. Cost: one forward and one backward pass; of a full last block two of them."""
        recipe, view, terms = self.recipe, self.recipe.side.view(point.place), []
        if self.layout is not None and recipe.part != "residual":
            jvp = jax.linearize(lambda v: view.meant(view.run(v)), view.start)[1]
            product = _GaussNewtonProduct(recipe.side.scale(point.place), self.layout)
            terms = [Partial(product, jvp, point.curvature, view.start)]
        if recipe.part != "gauss_newton":
            # Of the last block the residual part beside J^T S J: S of the loss is known more exactly than it rounds.
            scalar = _residual_form if self.layout is not None or recipe.part == "residual" else _matching_form
            terms.append(Partial(_as_variables, _second_derivative(scalar(recipe, point, view), view), view.start))
        prepared = None if factor is None else factor.prepare()
        d, _, dtype, batch = recipe.side.sizes(point.place)
        return SymmetricOperator(Partial(_sum, terms), prepared, None, d, dtype, batch)


def _sum(terms: list[Partial], v: Array) -> Array:
    return sum((term(v) for term in terms[1:]), start=terms[0](v))


def _second_derivative(scalar: Callable[[Array], Array], view: View) -> Partial:
    return cast(Partial, jax.linearize(jax.grad(scalar), view.start)[1])


def _as_variables(derivative: Partial, start: Array, v: Array) -> Array:
    """The product of a vector that may be in a narrower type than the variables."""
    return derivative(v.astype(start.dtype))


def _residual_form(recipe: Recipe, point: Point, view: View) -> Callable[[Array], Array]:
    """v -> s <r, F(v)>, whose Hessian is the residual part."""
    residual, scale = view.meant(point.residual), recipe.side.scale(point.place)
    return lambda v: scale * jnp.sum(residual * view.meant(view.run(v)))


def _matching_form(recipe: Recipe, point: Point, view: View) -> Callable[[Array], Array]:
    """v -> s n l_b before the last block, whose Hessian is the full one."""
    displacement, scale = -view.meant(point.residual), recipe.side.scale(point.place)

    def back_matching_loss(v: Array) -> Array:
        value = view.meant(view.run(v))  # it is differentiated at the point, so that this is the center too
        return scale * displaced([displacement], [value], [value])

    return back_matching_loss


@dataclasses.dataclass(frozen=True)
class _GaussNewtonProduct:
    """J^T S J v without a factor of S."""

    scale: float
    layout: Layout

    def __call__(self, jvp: Partial, curvature: Partial, start: Array, v: Array) -> Array:
        v = v.astype(start.dtype)
        return curved(jvp, v, lambda image: self.layout.through(curvature, image), self.scale)(v)
