"""Jacobians of a block as linear maps on flat vectors.

Back-matching, the probe for coupling and the local Hessians multiply by the same maps, so that each is compiled once.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
from jax.tree_util import Partial

from localhessian._programs import live, run
from localhessian._tree import floating
from localhessian._types import Activations, Array
from localhessian.linalg import LinearMap, call, lazy_map
from localhessian.network._chain import Block
from localhessian.network._side import Place, Side, applied


def linearized(block: Block, place: Place) -> tuple[Activations, Partial]:
    """z_b, and the block to first order in all of its parameters and inputs: one program, whatever the variables."""
    return call(Partial(_Linearized(block)), dataclasses.replace(place, index=None))


def jacobian(side: Side, place: Place, label: str = "") -> LinearMap:
    """R = sqrt(s) J, with H = R^T R before the last block. Cost: `prepare` takes a forward pass."""
    return lazy_map(Partial(_Prepared(side), place), *side.sizes(place), label)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """() -> the map, linearized."""

    side: Side

    def __call__(self, place: Place) -> LinearMap:
        return jacobian_of(linearized(self.side.block, place)[1], self.side, place)


def jacobian_of(jvp: Partial, side: Side, place: Place) -> LinearMap:
    """R, of the block's linearization at the place."""
    d, m, dtype, batch = side.sizes(place)
    point = dataclasses.replace(place, context=None)  # in the linearization
    forward, backward = Partial(_Times(side), jvp, point), Partial(_TransposeTimes(side), jvp, point)
    return LinearMap(forward, backward, None, d, m, dtype, batch)


def root_scale(side: Side, place: Place) -> float:
    """Of R."""
    return math.sqrt(side.scale(place))


@dataclasses.dataclass(frozen=True)
class _Linearized:
    block: Block

    def __call__(self, place: Place) -> tuple[Activations, Partial]:
        weights, rebuild_params = floating(place.params)
        inputs, rebuild_input = floating(place.z)

        def outputs(weights: list[Array], inputs: list[Array]) -> tuple[list[Array], Activations]:
            z = applied(self.block, dataclasses.replace(place, params=rebuild_params(weights), z=rebuild_input(inputs)))
            return floating(z)[0], z

        _, jvp, z = jax.linearize(outputs, weights, inputs, has_aux=True)
        return z, cast(Partial, jvp)


@dataclasses.dataclass(frozen=True)
class _Times:
    """R v."""

    side: Side

    def __call__(self, jvp: Partial, point: Place, v: Array) -> Array:
        push, start, _ = self.product(jvp, point)
        return root_scale(self.side, point) * push(v.astype(start.dtype))

    def product(self, jvp: Partial, point: Place) -> tuple[Callable[[Array], Array], Any, Any]:
        """v -> J v by what depends on v alone, and what it takes and gives."""
        view = self.side.view(point, jvp)

        def push(v: Array) -> Array:
            return jax.jvp(lambda v: view.meant(view.run(v)), (view.start,), (v,))[1]

        program = jax.make_jaxpr(push)(view.start)
        needed = live(program)
        return lambda v: run(needed, v)[0], program.in_avals[0], program.out_avals[0]


@dataclasses.dataclass(frozen=True)
class _TransposeTimes(_Times):
    """R^T u."""

    def __call__(self, jvp: Partial, point: Place, u: Array) -> Array:
        push, start, out = self.product(jvp, point)
        return root_scale(self.side, point) * jax.linear_transpose(push, start)(u.astype(out.dtype))[0]
