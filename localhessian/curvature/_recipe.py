"""How a local Hessian is multiplied: static configuration (`Recipe`) applied to data (`Point`).

A recipe is hashable and holds no block name, so equal blocks share their compiled programs. Where H = R^T R with R the
scaled Jacobian of the block, R is the one that back-matching multiplied by.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from localhessian._tree import floating, pytree, ravel, ravel_samples
from localhessian._types import Activations, Array, Loss
from localhessian.curvature._loss import LossFactor, loss_hessian
from localhessian.linalg import LinearMap, SymmetricOperator
from localhessian.network import Place, Variables, View, batch_of, flatten


@pytree
class Point:
    """Where the local Hessian is taken, and what its loss needs: everything that is numbers."""

    place: Place
    residual: Activations
    y: Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is differentiated and by what."""

    variables: Variables
    loss: Loss | None
    """Of the last block; None before it."""
    part: str
    scale: float
    """1/n for H_W, 1 for H_z."""


def with_root(jacobian: LinearMap, root: LossFactor, layout: "Layout") -> LinearMap:
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
    samples: str | None
    """As of `Variables`."""

    def through(self, function: Callable[[list[Array]], list[Array]], vector: Array) -> Array:
        """A function of leaves on vectors."""
        zeros = [jnp.zeros(shape, dtype) for shape, dtype in self.leaves]
        if self.samples is None:
            leaves = ravel(zeros)[1](vector)
        else:
            rows, unravel = ravel_samples(zeros)
            leaves = unravel(vector.reshape(rows.shape))
        return flatten(function(leaves), self.samples)


@dataclasses.dataclass(frozen=True)
class _Rooted:
    """L^T R v, or R^T L u."""

    layout: Layout
    transposed: bool

    def __call__(self, product: Partial, root: LossFactor, vector: Array) -> Array:
        if self.transposed:
            return product(self.layout.through(root.mv, vector))
        return self.layout.through(root.transpose_mv, product(vector))


@dataclasses.dataclass(frozen=True)
class _SetupWithRoot:
    layout: Layout

    def __call__(self, setup: Partial, root: LossFactor) -> LinearMap:
        return with_root(setup(), root, self.layout)


@dataclasses.dataclass(frozen=True)
class OperatorSetup:
    """() -> a local Hessian without a factor, linearized: the full one, its residual part, or J^T S J."""

    recipe: Recipe

    def __call__(self, point: Point) -> SymmetricOperator:
        """Linearize at the point. Cost: one forward and one backward pass."""
        view = self.recipe.variables.view(point.place)
        if self.recipe.part == "gauss_newton":
            product = _gauss_newton(self.recipe, point, view)
        else:
            scalar = _residual_form if self.recipe.part == "residual" else _loss_form
            product = cast(Partial, jax.linearize(jax.grad(scalar(self.recipe, point, view)), view.start)[1])
        return SymmetricOperator(product, None, None, view.start.shape[-1], view.start.dtype, batch_of(view.start))


def _residual_form(recipe: Recipe, point: Point, view: View) -> Callable[[Array], Array]:
    """v -> scale <r, F(v)>, whose Hessian is the residual part."""
    residual = view.meant(point.residual)
    return lambda v: recipe.scale * jnp.sum(residual * view.meant(view.run(v)))


def _loss_form(recipe: Recipe, point: Point, view: View) -> Callable[[Array], Array]:
    """v -> scale n l_b, whose Hessian is the full one."""
    loss = recipe.loss
    if loss is not None:
        return lambda v: recipe.scale * loss(view.run(v), point.y).sum()
    residual = view.meant(point.residual)

    def back_matching_loss(v: Array) -> Array:
        # delta + center - F with delta = -r; the center is this very value, so at the point the gap is exactly -r.
        value = view.meant(view.run(v))
        return recipe.scale * 0.5 * jnp.sum((residual + (value - jax.lax.stop_gradient(value))) ** 2)

    return back_matching_loss


def _gauss_newton(recipe: Recipe, point: Point, view: View) -> Partial:
    _, jvp = jax.linearize(lambda v: floating(view.run(v))[0], view.start)
    hessian = loss_hessian(cast(Loss, recipe.loss), view.run(view.start), point.y)
    return Partial(_GaussNewtonProduct(recipe.scale), jvp, hessian)


@dataclasses.dataclass(frozen=True)
class _GaussNewtonProduct:
    """J^T S J v without a factor of S."""

    scale: float

    def __call__(self, jvp: Partial, hessian: Partial, v: Array) -> Array:
        start = jax.ShapeDtypeStruct(v.shape, v.dtype)
        return self.scale * jax.linear_transpose(jvp, start)(hessian(jvp(v)))[0]
