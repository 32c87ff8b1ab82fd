"""Jacobians of a block as linear maps on flat vectors.

Back-matching, the probe for coupling and the local Hessians multiply by the same maps, so that each is compiled once.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
from jax.sharding import NamedSharding
from jax.tree_util import Partial

from localhessian._mesh import constrained, over_mesh
from localhessian._programs import live, run
from localhessian._tree import floating, floating_leaves, pytree, static
from localhessian._types import Activations, Array
from localhessian.linalg import LinearMap, call
from localhessian.network._chain import Block
from localhessian.network._side import Place, Side, applied


def linearized(block: Block, place: Place) -> tuple[Activations, Partial]:
    """z_b, and the block to first order in all of its parameters and inputs: one program, whatever the variables."""
    return cast(tuple[Activations, Partial], call(Partial(_Linearized(block)), dataclasses.replace(place, index=None)))


def jacobian(side: Side, place: Place, label: str = "") -> LinearMap:
    """R = sqrt(s) J, with H = R^T R before the last block. Cost: `prepare` takes a forward pass."""
    d, m, dtype, batch = side.sizes(place)
    return Jacobian(place, side, size=d, out_size=m, dtype=dtype, batch=batch, label=label)


def jacobian_of(jvp: Partial, side: Side, place: Place) -> LinearMap:
    """R, of the block's linearization at the place."""
    d, m, dtype, batch = side.sizes(place)
    point = dataclasses.replace(place, context=None)  # in the linearization
    ends = over_mesh(side.variables(place)[0]), over_mesh(jax.tree.leaves(place.z))
    return LinearizedJacobian(jvp, point, side, *ends, size=d, out_size=m, dtype=dtype, batch=batch)


@pytree
class Jacobian(LinearMap):
    """R at a place; `prepare` linearizes."""

    place: Place
    side: Side = static()

    def product(self, v: Array, /) -> Array:
        """R v."""
        return self.prepare().product(v)

    def transpose_product(self, u: Array, /) -> Array:
        """R^T u."""
        return self.prepare().transpose_product(u)

    def prepare(self) -> LinearMap:
        """R of the linearization."""
        return jacobian_of(linearized(self.side.block, self.place)[1], self.side, self.place)


@pytree
class LinearizedJacobian(LinearMap):
    """R by the linearization of the block."""

    jvp: Partial
    place: Place
    side: Side = static()
    lies: NamedSharding | None = static()
    """How v lies over a mesh, as the variables do."""
    out_lies: NamedSharding | None = static()
    """And R v, as the samples do."""

    def product(self, v: Array, /) -> Array:
        """R v."""
        push, start, _ = self._push()
        image = push(constrained(v, self.lies).astype(start.dtype))
        return constrained(root_scale(self.side, self.place) * image, self.out_lies)

    def transpose_product(self, u: Array, /) -> Array:
        """R^T u."""
        push, start, out = self._push()
        (image,) = jax.linear_transpose(push, start)(constrained(u, self.out_lies).astype(out.dtype))
        return cast(Array, constrained(root_scale(self.side, self.place) * image, self.lies))

    def _push(self) -> tuple[Callable[[Array], Array], Any, Any]:
        """v -> J v by what depends on v alone, and what it takes and gives."""
        view = self.side.view(self.place, self.jvp)

        def push(v: Array) -> Array:
            return cast(Array, jax.jvp(lambda v: view.meant(view.run(v)), (view.start,), (v,))[1])

        program = jax.make_jaxpr(push)(view.start)
        needed = live(program)
        return lambda v: run(needed, v)[0], program.in_avals[0], program.out_avals[0]


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
            return floating_leaves(z), z

        _, jvp, z = jax.linearize(outputs, weights, inputs, has_aux=True)
        return z, cast(Partial, jvp)
