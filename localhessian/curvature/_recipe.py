"""How a local Hessian is multiplied: static configuration (`Recipe`) applied to data (`Point`).

A recipe is hashable and holds no block name, so equal blocks share their compiled programs. Where H = R^T R with R the
scaled Jacobian of the block, R is the one that back-matching multiplied by.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.tree_util import Partial

from localhessian._mesh import constrained, over_mesh
from localhessian._tree import pytree, static
from localhessian._types import Activations, Array, Loss
from localhessian.curvature._root import Root
from localhessian.linalg import LinearMap, SymmetricOperator, call
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


@pytree
class Rooted(LinearMap):
    """L^T R of the last block, with S = L L^T its loss Hessian."""

    jacobian: LinearMap
    root: Root
    layout: Layout = static()

    def product(self, v: Array, /) -> Array:
        """L^T R v."""
        return self.layout.through(self.root.transpose_mv, self.jacobian.product(v))

    def transpose_product(self, u: Array, /) -> Array:
        """R^T L u."""
        return self.jacobian.transpose_product(self.layout.through(self.root.mv, u))

    def prepare(self) -> LinearMap:
        """With the block linearized."""
        return dataclasses.replace(self, jacobian=self.jacobian.prepare(), label="")


@pytree
class LocalHessian(SymmetricOperator):
    """A local Hessian that is not multiplied by a factor: the full one, its residual part, J^T S J."""

    point: Point
    root: LinearMap | None
    """The factor, where there is one all the same."""
    recipe: Recipe = static()
    layout: Layout | None = static()

    @property
    def factor(self) -> LinearMap | None:
        """R with H = R^T R where one is known; None otherwise."""
        return self.root

    def product(self, v: Array, /) -> Array:
        """H v."""
        return self.prepare().product(v)

    def prepare(self) -> SymmetricOperator:
        """Linearize at the point. Cost: one forward and one backward pass; of a full last block two of them."""
        factor = None if self.root is None else self.root.prepare()
        terms = call(Partial(_Terms(self.recipe, self.layout)), self.point)
        lies = over_mesh(self.recipe.side.variables(self.point.place)[0])
        return LinearizedHessian(terms, factor, lies, size=self.size, dtype=self.dtype, batch=self.batch)


@pytree
class LinearizedHessian(SymmetricOperator):
    """A sum of linear functions."""

    terms: list[Partial]
    root: LinearMap | None
    lies: NamedSharding | None = static()
    """How vectors lie over a mesh, as the variables do."""

    @property
    def factor(self) -> LinearMap | None:
        """R with H = R^T R where one is known; None otherwise."""
        return self.root

    def product(self, v: Array, /) -> Array:
        """H v."""
        v = constrained(v, self.lies)
        return cast(Array, constrained(sum((term(v) for term in self.terms[1:]), start=self.terms[0](v)), self.lies))


@dataclasses.dataclass(frozen=True)
class _Terms:
    """Point -> what a local Hessian is the sum of."""

    recipe: Recipe
    layout: Layout | None

    def __call__(self, point: Point) -> list[Partial]:
        recipe, view, terms = self.recipe, self.recipe.side.view(point.place), []
        if self.layout is not None and recipe.part != "residual":
            jvp = jax.linearize(lambda v: view.meant(view.run(v)), view.start)[1]
            product = _GaussNewtonProduct(recipe.side.scale(point.place), self.layout)
            terms = [Partial(product, jvp, point.curvature, view.start)]
        if recipe.part != "gauss_newton":
            # Of the last block the residual part beside J^T S J: S of the loss is known more exactly than it rounds.
            scalar = _residual_form if self.layout is not None or recipe.part == "residual" else _matching_form
            second = jax.linearize(jax.grad(scalar(recipe, point, view)), view.start)[1]
            terms.append(Partial(_as_variables, second, view.start))
        return terms


def _as_variables(derivative: Partial, start: Array, v: Array) -> Array:
    """The product of a vector that may be in a narrower type than the variables."""
    return cast(Array, derivative(v.astype(start.dtype)))


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
        return cast(Array, curved(jvp, v, lambda image: self.layout.through(curvature, image), self.scale)(v))
