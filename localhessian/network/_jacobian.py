"""Jacobians of a block as linear maps on flat vectors.

Back-matching, the probe for coupling and the local Hessians multiply by the same maps, so that each is compiled once.
What is static here (`Variables`) is hashable and holds no block name, so equal blocks share their programs too.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.tree_util import Partial

from localhessian._memory import remembered
from localhessian._programs import assemble
from localhessian._tree import abstracted, floating, of_shapes, pytree, ravel, ravel_samples
from localhessian._types import Activations, Array, Context, Params
from localhessian.linalg import LinearMap, call, lazy_map
from localhessian.network._chain import Block


@pytree
class Place:
    """Where a block is linearized."""

    params: Params
    z: Activations
    context: Context
    index: Array | None = None
    """The samples meant, where the block must run on the whole batch; None where `z` holds just what is meant."""


class View(NamedTuple):
    """A block as a function of one vector (or of one row for each sample)."""

    start: Array
    """The variables at the place: `(d,)`, or `(s, d)`."""
    run: Callable[[Array], Activations]
    """From the variables to z_b, of the batch that the block runs on."""
    meant: Callable[[Activations], Array]
    """The floating-point outputs meant, as `(m,)` or `(s, m)`."""


@dataclasses.dataclass(frozen=True)
class Variables:
    """What a block is differentiated by."""

    block: Block
    wrt: str
    """`"params"` or `"input"`."""
    keep: tuple[bool, ...] | None = None
    """For each floating-point parameter leaf, whether it is a variable; None: all are."""
    samples: str | None = None
    """None: one vector for the batch. `"many"`: one row for each sample meant. `"one"`: one sample, as a vector."""

    def view(self, place: Place, jvp: Callable | None = None) -> View:
        """Lay the variables out as a vector; with `jvp` of the linearization in place of the block."""
        start, fill = self._params(place) if self.wrt == "params" else self._input(place)

        def run(v: Array) -> Activations:
            params, z = fill(v)
            if jvp is not None:
                return jvp(floating(params)[0], floating(z)[0])
            return self.block(params, z, place.context)

        return View(start, run, lambda z: flatten(meant(z, place.index), self.samples))

    def _params(self, place: Place):
        leaves, rebuild = floating(place.params, self.keep)
        start, unravel = ravel(leaves)
        return start, lambda v: (rebuild(unravel(v)), place.z)

    def _input(self, place: Place):
        leaves, rebuild = floating(place.z)
        if self.samples is None:
            start, unravel = ravel(leaves)
            return start, lambda v: (place.params, rebuild(unravel(v)))
        rows, unravel = ravel_samples(meant(place.z, place.index))

        def fill(v: Array):
            values = unravel(v.reshape(rows.shape))
            if place.index is not None:
                values = [leaf.at[place.index].set(row) for leaf, row in zip(leaves, values, strict=True)]
            return place.params, rebuild(values)

        return (rows[0] if self.samples == "one" else rows), fill

    def sizes(self, place: Place) -> tuple[int, int, Any, int | None]:
        """Columns d and rows m of the Jacobian, the narrower dtype of its ends, and batch; nothing is computed."""
        return _sizes(self.block.apply, self.wrt, self.keep, self.samples, *abstracted(place))


def meant(z: Activations, index: Array | None) -> list[Array]:
    """The floating-point leaves of the samples meant."""
    leaves = floating(z)[0]
    return leaves if index is None else [leaf[index] for leaf in leaves]


def flatten(leaves: list[Array], samples: str | None) -> Array:
    """Leaves as one vector, or as one row for each sample."""
    if samples is None:
        return ravel(leaves)[0]
    rows = ravel_samples(leaves)[0]
    return rows[0] if samples == "one" else rows


def batch_of(start: Any) -> int | None:
    """How many vectors the variables are; None for a single one, without the leading axis."""
    return start.shape[0] if start.ndim == 2 else None


@remembered
def _sizes(
    apply: Callable, wrt: str, keep: Any, samples: str | None, treedef: Any, leaves: Any
) -> tuple[int, int, Any, int | None]:
    variables = Variables(Block("", apply), wrt, keep, samples)

    def ends(place: Place) -> tuple[Array, Array]:
        view = variables.view(place)
        return view.start, view.meant(view.run(view.start))

    start, out = jax.eval_shape(ends, of_shapes(treedef, leaves))
    return start.shape[-1], out.shape[-1], _narrower(start.dtype, out.dtype), batch_of(start)


def linearized(block: Block, place: Place) -> tuple[Activations, Partial]:
    """z_b, and the block to first order in all of its parameters and inputs: one program, whatever the variables."""
    return call(Partial(_Linearized(block)), dataclasses.replace(place, index=None))


def jacobian(variables: Variables, scale: float, place: Place, label: str = "") -> LinearMap:
    """R = sqrt(scale) J, J the Jacobian of the outputs meant by the variables. Cost: `prepare` takes a forward pass."""
    return lazy_map(Partial(_Prepared(variables, math.sqrt(scale)), place), *variables.sizes(place), label)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """() -> the map, linearized."""

    variables: Variables
    factor: float

    def __call__(self, place: Place) -> LinearMap:
        return jacobian_of(linearized(self.variables.block, place)[1], self.variables, self.factor, place)


def jacobian_of(jvp: Partial, variables: Variables, factor: float, place: Place) -> LinearMap:
    """R = factor J, of the block's linearization at the place."""
    d, m, dtype, batch = variables.sizes(place)
    point = dataclasses.replace(place, context=None)  # in the linearization
    forward = Partial(_Times(variables, factor), jvp, point)
    backward = Partial(_TransposeTimes(variables, factor), jvp, point)
    return LinearMap(forward, backward, None, d, m, dtype, batch)


@dataclasses.dataclass(frozen=True)
class _Linearized:
    block: Block

    def __call__(self, place: Place) -> tuple[Activations, Partial]:
        weights, rebuild_params = floating(place.params)
        inputs, rebuild_input = floating(place.z)

        def outputs(weights: list[Array], inputs: list[Array]) -> tuple[list[Array], Activations]:
            z = self.block(rebuild_params(weights), rebuild_input(inputs), place.context)
            return floating(z)[0], z

        _, jvp, z = jax.linearize(outputs, weights, inputs, has_aux=True)
        return z, cast(Partial, jvp)


@dataclasses.dataclass(frozen=True)
class _Times:
    """R v."""

    variables: Variables
    factor: float

    def __call__(self, jvp: Partial, point: Place, v: Array) -> Array:
        push, start, _ = self.product(jvp, point)
        return self.factor * push(v.astype(start.dtype))

    def product(self, jvp: Partial, point: Place) -> tuple[Callable[[Array], Array], Any, Any]:
        """v -> J v by what depends on v alone, and what it takes and gives."""
        view = self.variables.view(point, jvp)

        def push(v: Array) -> Array:
            return jax.jvp(lambda v: view.meant(view.run(v)), (view.start,), (v,))[1]

        program = jax.make_jaxpr(push)(view.start)
        live = core.jaxpr_as_fun(_live(program))
        return lambda v: live(v)[0], program.in_avals[0], program.out_avals[0]


@dataclasses.dataclass(frozen=True)
class _TransposeTimes(_Times):
    """R^T u."""

    def __call__(self, jvp: Partial, point: Place, u: Array) -> Array:
        push, start, out = self.product(jvp, point)
        return self.factor * jax.linear_transpose(push, start)(u.astype(out.dtype))[0]


def _live(program: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Without the equations that nothing depends on."""
    jaxpr = program.jaxpr
    needed, kept = set(filter(_is_variable, jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(filter(_is_variable, eqn.invars))
            kept.append(eqn)
    return assemble(jaxpr.constvars, program.consts, jaxpr.invars, jaxpr.outvars, kept[::-1])


def _is_variable(atom: Any) -> bool:
    return isinstance(atom, core.Var)


def _narrower(one: Any, two: Any) -> Any:
    """Of two dtypes: what a map between them is accurate to."""
    return min(one, two, key=lambda dtype: jnp.finfo(dtype).bits)
