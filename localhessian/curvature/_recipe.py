"""How a local Hessian is multiplied: static configuration (`Recipe`) applied to data (`Point`).

A recipe is hashable and holds no block name, so equal blocks share their compiled programs.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from localhessian._tree import floating, pytree, ravel, ravel_samples
from localhessian._types import Activations, Array, Context, Loss, Params
from localhessian.curvature._loss import LossFactor, loss_hessian
from localhessian.linalg import LinearMap, SymmetricOperator
from localhessian.network import Block


@pytree
class Point:
    """Where the local Hessian is taken: everything that is numbers."""

    params: Params
    z: Activations
    context: Context
    residual: Activations
    y: Any
    index: Array | None
    """The samples meant, where the block must run on the whole batch; None where `z` holds just what is meant."""


class View(NamedTuple):
    """A block as a function of one vector (or of one row for each sample)."""

    start: Array
    """The variables at the point: `(d,)`, or `(s, d)`."""
    run: Callable[[Array], Activations]
    """From the variables to z_b, of the batch that the block runs on."""
    meant: Callable[[Activations], Array]
    """The floating-point outputs meant, as `(m,)` or `(s, m)`."""
    leaves: tuple[tuple[tuple[int, ...], Any], ...]
    """Shape and dtype of each floating-point output leaf of the samples meant."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is differentiated and by what."""

    block: Block
    loss: Loss | None
    """Of the last block; None before it."""
    wrt: str
    part: str
    keep: tuple[bool, ...] | None
    """For each floating-point parameter leaf, whether it is a variable; None: all are."""
    samples: str | None
    """None: one vector for the batch. `"many"`: one row for each sample meant. `"one"`: one sample, as a vector."""
    scale: float
    """1/n for H_W, 1 for H_z."""

    def view(self, point: Point) -> View:
        """Lay the variables out as a vector."""
        start, fill = self._params(point) if self.wrt == "params" else self._input(point)

        def run(v: Array) -> Activations:
            params, z = fill(v)
            return self.block(params, z, point.context)

        def leaves(z: Activations) -> list[Array]:
            outputs = floating(z)[0]
            return outputs if point.index is None else [leaf[point.index] for leaf in outputs]

        shapes = jax.eval_shape(lambda v: leaves(run(v)), start)
        layout = tuple((leaf.shape, leaf.dtype) for leaf in shapes)
        return View(start, run, lambda z: flatten(leaves(z), self.samples), layout)

    def _params(self, point: Point):
        leaves, rebuild = floating(point.params, self.keep)
        start, unravel = ravel(leaves)
        return start, lambda v: (rebuild(unravel(v)), point.z)

    def _input(self, point: Point):
        leaves, rebuild = floating(point.z)
        if self.samples is None:
            start, unravel = ravel(leaves)
            return start, lambda v: (point.params, rebuild(unravel(v)))
        rows, unravel = ravel_samples(leaves if point.index is None else [leaf[point.index] for leaf in leaves])

        def fill(v: Array):
            values = unravel(v.reshape(rows.shape))
            if point.index is not None:
                values = [leaf.at[point.index].set(row) for leaf, row in zip(leaves, values, strict=True)]
            return point.params, rebuild(values)

        return (rows[0] if self.samples == "one" else rows), fill


def sizes(recipe: Recipe, point: Point) -> tuple[int, int, Any, int | None]:
    """Order d of H, rows m of its factor, dtype of vectors, and batch; nothing is computed."""

    def vectors(point):
        view = recipe.view(point)
        return view.start, view.meant(view.run(view.start))

    start, out = jax.eval_shape(vectors, point)
    return start.shape[-1], out.shape[-1], start.dtype, _batch(start)


def _batch(start: Any) -> int | None:
    return start.shape[0] if start.ndim == 2 else None


def flatten(leaves: list[Array], samples: str | None) -> Array:
    """Output leaves as one vector, or as one row for each sample."""
    if samples is None:
        return ravel(leaves)[0]
    rows = ravel_samples(leaves)[0]
    return rows[0] if samples == "one" else rows


@dataclasses.dataclass(frozen=True)
class FactorSetup:
    """() -> R with H = R^T R, linearized: R = sqrt(scale) L^T J with S = L L^T; L = I before the last block."""

    recipe: Recipe

    def __call__(self, point: Point, root: LossFactor | None) -> LinearMap:
        """Linearize the block at the point. Cost: one forward pass."""
        view = self.recipe.view(point)
        value, jvp = jax.linearize(lambda v: view.meant(view.run(v)), view.start)
        layout = _FactorProduct(self.recipe.scale, self.recipe.samples, view.leaves)
        forward = Partial(layout, jvp, root)
        backward = Partial(dataclasses.replace(layout, transposed=view.start.shape), jvp, root)
        sizes = view.start.shape[-1], value.shape[-1]
        return LinearMap(forward, backward, None, *sizes, view.start.dtype, _batch(view.start))


@dataclasses.dataclass(frozen=True)
class _FactorProduct:
    """R v, or R^T u where the shape of the variables is given in `transposed`."""

    scale: float
    samples: str | None
    leaves: tuple[tuple[tuple[int, ...], Any], ...]
    transposed: tuple[int, ...] | None = None

    def __call__(self, jvp: Partial, root: LossFactor | None, vector: Array) -> Array:
        if self.transposed is None:
            out = jvp(vector)
            return math.sqrt(self.scale) * (out if root is None else self._through(root.transpose_mv, out))
        cotangent = vector if root is None else self._through(root.mv, vector)
        start = jax.ShapeDtypeStruct(self.transposed, vector.dtype)
        return math.sqrt(self.scale) * jax.linear_transpose(jvp, start)(cotangent)[0]

    def _through(self, function: Callable[[list[Array]], list[Array]], vector: Array) -> Array:
        zeros = [jnp.zeros(shape, dtype) for shape, dtype in self.leaves]
        if self.samples is None:
            leaves = ravel(zeros)[1](vector)
        else:
            rows, unravel = ravel_samples(zeros)
            leaves = unravel(vector.reshape(rows.shape))
        return flatten(function(leaves), self.samples)


@dataclasses.dataclass(frozen=True)
class OperatorSetup:
    """() -> a local Hessian without a factor, linearized: the full one, its residual part, or J^T S J."""

    recipe: Recipe

    def __call__(self, point: Point) -> SymmetricOperator:
        """Linearize at the point. Cost: one forward and one backward pass."""
        view = self.recipe.view(point)
        if self.recipe.part == "gauss_newton":
            product = _gauss_newton(self.recipe, point, view)
        else:
            scalar = _residual_form if self.recipe.part == "residual" else _loss_form
            product = cast(Partial, jax.linearize(jax.grad(scalar(self.recipe, point, view)), view.start)[1])
        return SymmetricOperator(product, None, None, view.start.shape[-1], view.start.dtype, _batch(view.start))


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
