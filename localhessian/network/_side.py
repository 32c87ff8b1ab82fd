"""One side of one block: its parameters or its input as variables, and what is asked of the block by them.

Back-matching, local Hessians, scalars and solvers all ask here. A side is static: hashable, and of blocks without their
names equal wherever they compute the same, so that equal blocks share their programs. The numbers are a `Place`.
"""

import abc
import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp

from localhessian._memory import remembered
from localhessian._programs import compiled_if_eager
from localhessian._tree import abstracted, floating, floating_leaves, of_shapes, pytree, ravel, ravel_samples
from localhessian._types import Activations, Array, Context, Params, Scalar
from localhessian.network._chain import Block

Wrt = Literal["params", "input"]
"""How the sides are called at the door; inside they are of a class each (`SIDES`)."""
Leaves = list[Array]
"""The floating-point leaves of a pytree."""


@pytree
class Place:
    """Where a block is taken."""

    params: Params
    z: Activations
    context: Context
    index: Array | None = None
    """The samples meant, where the block must run on the whole batch; None where `z` holds just what is meant."""

    @property
    def samples(self) -> int:
        """The number of samples n that the block runs on."""
        return cast(int, jax.tree.leaves(self.z)[0].shape[0])


def applied(block: Block, place: Place) -> Activations:
    """F_b(W_b, z_{b-1})."""
    return block(place.params, place.z, place.context)


class Arrangement(enum.Enum):
    """How leaves with samples on their leading axis lie as vectors."""

    BATCH = enum.auto()
    """One vector for the batch, in the order of `jax.flatten_util.ravel_pytree`."""
    ROWS = enum.auto()
    """One row for each sample."""
    ONE = enum.auto()
    """The only sample, as a vector."""

    def lay(self, leaves: Leaves) -> tuple[Array, Callable[[Array], Leaves]]:
        """As a vector (or rows), and the way back."""
        if self is Arrangement.BATCH:
            return ravel(leaves)
        rows, unravel = ravel_samples(leaves)
        return (rows, unravel) if self is Arrangement.ROWS else (rows[0], lambda v: unravel(v[None]))


class View(NamedTuple):
    """A block as a function of one vector (or of one row for each sample)."""

    start: Array
    """The variables at the place: `(d,)`, or `(s, d)`."""
    run: Callable[[Array], Activations]
    """From the variables to z_b, of the batch that the block runs on."""
    meant: Callable[[Activations], Array]
    """The floating-point outputs meant, as `(m,)` or `(s, m)`."""


@dataclasses.dataclass(frozen=True)
class Side(abc.ABC):
    """A block F and which of its arguments is varied: v is W_b (`ByParams`) or z_{b-1} (`ByInput`).

    The back-matching loss as a side minimizes it is phi(v + p) = s sum_i 1/2 ||delta[i] - (F(v + p) - F(v))[i]||^2;
    s = 1/n for W_b (phi is l_b) and 1 for z_{b-1} (phi is n l_b: a unit step is one on the per-sample loss).
    """

    block: Block
    keep: tuple[bool, ...] | None = None
    """For each floating-point leaf, whether it is a variable; None: all are."""
    arrangement: Arrangement = Arrangement.BATCH
    """Of the samples meant, as vectors; parameters are one vector."""

    wrt: ClassVar[Wrt]
    symbol: ClassVar[str]
    """Of the local Hessian."""
    per_sample: ClassVar[bool]
    """Whether the variables are the samples' own: another batch brings others."""

    @staticmethod
    @abc.abstractmethod
    def varied(place: Place) -> Any:
        """The pytree that holds the variables."""

    @staticmethod
    @abc.abstractmethod
    def moved(place: Place, to: Any) -> Place:
        """The place with another pytree there."""

    def scale(self, place: Place) -> float:
        """The s of phi and of the local Hessian s J^T S J."""
        return 1.0 if self.per_sample else 1 / place.samples

    # ---- on leaves

    def variables(self, place: Place) -> tuple[Leaves, Callable[[Leaves], Place]]:
        """v, and from other values to their place."""
        leaves, rebuild = floating(self.varied(place), self.keep)
        return leaves, lambda values: self.moved(place, rebuild(values))

    def outputs(self, place: Place) -> Callable[[Leaves], Leaves]:
        """v -> the floating-point leaves of F(v)."""
        _, fill = self.variables(place)
        return lambda values: floating_leaves(applied(self.block, fill(values)))

    def pull(self, place: Place) -> tuple[Leaves, Callable[[Leaves], Leaves]]:
        """F, and u -> s J^T u."""
        scale = self.scale(place)
        outputs, pull = jax.vjp(self.outputs(place), self.variables(place)[0])
        return outputs, lambda u: [scale * leaf for leaf in pull(u)[0]]

    def gauss_newton(self, place: Place, curvature: Callable[[Leaves], Leaves] | None) -> Callable[[Leaves], Leaves]:
        """v -> s J^T S J v, linearized once; `curvature` is S, None the identity."""
        variables, _ = self.variables(place)
        _, jvp = jax.linearize(self.outputs(place), variables)
        return curved(jvp, variables, curvature, self.scale(place))

    def loss(self, place: Place, displacement: Activations) -> Callable[[Leaves], Scalar]:
        """phi, before the last block."""
        _, fill = self.variables(place)
        total, scale = matching_loss(self.block, place, displacement), self.scale(place)
        return lambda values: scale * total(fill(values))

    # ---- on vectors

    def view(self, place: Place, jvp: Callable[..., Any] | None = None) -> View:
        """Lay the variables out as a vector; with `jvp` of the linearization in place of the block."""
        leaves, fill = self.variables(place)
        start, unravel = self.arrangement.lay(_at(leaves, place.index))

        def moved(v: Array) -> Place:
            values = unravel(v)
            if place.index is not None:
                values = [
                    leaf.at[place.index].set(row, unique_indices=True) for leaf, row in zip(leaves, values, strict=True)
                ]
            return fill(values)

        def outputs(v: Array) -> Activations:
            there = moved(v)
            return (
                applied(self.block, there)
                if jvp is None
                else jvp(floating_leaves(there.params), floating_leaves(there.z))
            )

        return View(start, outputs, lambda z: self.arrangement.lay(meant(z, place.index))[0])

    def sizes(self, place: Place) -> tuple[int, int, Any, int | None]:
        """Columns d and rows m of the Jacobian, the narrower dtype of its ends, and batch; nothing is computed."""
        return _sizes(self.block.apply, type(self), self.keep, self.arrangement, *abstracted(place))


class ByParams(Side):
    """The variables are W_b."""

    wrt, symbol, per_sample = "params", "H_W", False

    @staticmethod
    def varied(place: Place) -> Params:
        """W_b."""
        return place.params

    @staticmethod
    def moved(place: Place, to: Params) -> Place:
        """With other parameters."""
        return dataclasses.replace(place, params=to)


class ByInput(Side):
    """The variables are z_{b-1}."""

    wrt, symbol, per_sample = "input", "H_z", True

    @staticmethod
    def varied(place: Place) -> Activations:
        """z_{b-1}."""
        return place.z

    @staticmethod
    def moved(place: Place, to: Activations) -> Place:
        """With another input."""
        return dataclasses.replace(place, z=to)


def outputs_by(sides: Sequence[Side], place: Place) -> Callable[[Sequence[Leaves]], tuple[Leaves, Activations]]:
    """The variables of several sides of one block -> F as its floating-point leaves, and as it is."""

    def outputs(values: Sequence[Leaves]) -> tuple[Leaves, Activations]:
        there = place
        for side, leaves in zip(sides, values, strict=True):
            there = side.variables(there)[1](leaves)
        z = applied(sides[0].block, there)
        return floating_leaves(z), z

    return outputs


SIDES: Mapping[Wrt, type[Side]] = {side.wrt: side for side in (ByParams, ByInput)}


def meant(z: Activations, index: Array | None) -> Leaves:
    """The floating-point leaves of the samples meant."""
    return _at(floating_leaves(z), index)


def _at(leaves: Leaves, index: Array | None) -> Leaves:
    return leaves if index is None else _taken(leaves, index)


@compiled_if_eager()
def _taken(leaves: Leaves, index: Array) -> Leaves:
    return [leaf[index] for leaf in leaves]


def curved(
    jvp: Callable[..., Any], like: Any, curvature: Callable[..., Any] | None, scale: float
) -> Callable[..., Any]:
    """v -> s J^T S J v, on whatever pytrees the linear map J takes and gives."""
    back = jax.linear_transpose(jvp, like)

    def product(v: Any) -> Any:
        image = jvp(v)
        if curvature is not None:  # in whatever precision
            image = jax.tree.map(lambda one, like: one.astype(like.dtype), curvature(image), image)
        return jax.tree.map(lambda leaf: scale * leaf, back(image)[0])

    return product


# ---- the back-matching loss


def matching_loss(block: Block, place: Place, displacement: Activations) -> Callable[[Place], Scalar]:
    """There -> sum_i 1/2 ||delta[i] - (F(there) - F(place))[i]||^2, exactly that of delta where `there` is `place`.

    F(place) is computed in the same program, but the compiler may still round it apart from F(there), which would
    swamp a small delta: at the place itself it is F(there).
    """

    def total(there: Place) -> Scalar:
        value, center = (floating_leaves(applied(block, at)) for at in (there, place))
        is_there = _equal((place.params, place.z), (there.params, there.z))
        center = [jnp.where(is_there, f, c) for f, c in zip(value, center, strict=True)]
        return displaced(floating_leaves(displacement), value, center)

    return total


def displaced(displacement: Leaves, value: Leaves, center: Leaves) -> Scalar:
    """1/2 ||delta - (F - center)||^2, the center held: the residual is not lost in F, however small delta is."""
    return half_square(
        [d - (f - jax.lax.stop_gradient(c)) for d, f, c in zip(displacement, value, center, strict=True)]
    )


def half_square(leaves: Sequence[Array]) -> Scalar:
    """1/2 ||.||^2 over all leaves."""
    squares = [0.5 * jnp.sum(leaf**2) for leaf in leaves]
    return sum(squares[1:], start=squares[0])


def _equal(one: Any, two: Any) -> Array | bool:
    """Whether all numbers are; what is the same array needs no comparison."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    same: Array | bool = True
    for a, b in pairs:
        same = same if a is b else jnp.all(a == b) & same
    return same


# ---- sizes


@remembered
def _sizes(
    apply: Callable[..., Any], kind: type[Side], keep: Any, arrangement: Arrangement, treedef: Any, leaves: Any
) -> tuple[int, int, Any, int | None]:
    side = kind(Block("", apply), keep, arrangement)

    def ends(place: Place) -> tuple[Array, Array]:
        view = side.view(place)
        return view.start, view.meant(view.run(view.start))

    start, out = jax.eval_shape(ends, of_shapes(treedef, leaves))
    narrower = min(start.dtype, out.dtype, key=lambda dtype: jnp.finfo(dtype).bits)
    return start.shape[-1], out.shape[-1], narrower, start.shape[0] if start.ndim == 2 else None
