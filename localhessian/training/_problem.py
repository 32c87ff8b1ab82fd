"""The two argmins of a block as one problem: find a step that lowers the back-matching loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from localhessian._programs import compiled_if_eager
from localhessian._tree import floating, floating_leaves, pytree, size, static
from localhessian._types import Activations, Key, Loss, Scalar
from localhessian.curvature import estimated_scalars, loss_hessian, random_words
from localhessian.linalg import quickly
from localhessian.network import Leaves, Place, Side, applied, half_square

Step = Leaves
"""One array for each floating-point leaf of the variables."""


@pytree
class Problem:
    """Minimize phi over a step p of the variables of one side of a block, which are W_b or z_{b-1}.

    phi(p) = s sum_i 1/2 ||delta_b[i] - (F_b(v + p) - F_b(v))[i]||^2, of the last block s sum_i loss(F_B(v + p), y)[i];
    s = 1/n for W (phi is l_b) and 1 for z (phi is n l_b, as docs/theory.md, 2 defines the unit step).
    """

    place: Place
    """W_b, z_{b-1} and the context: where the step begins."""
    target: Any
    """delta_b on the leaves of z_b; of the last block y."""
    side: Side = static()
    loss: Loss | None = static()
    """Of the last block; None before it."""

    @property
    def start(self) -> Step:
        """The variables v."""
        return self.side.variables(self.place)[0]

    def of_variables(self, variables: Step) -> Leaves:
        """The floating-point leaves of F_b."""
        return self.side.outputs(self.place)(variables)

    @compiled_if_eager()
    def objective(self, step: Step) -> Scalar:
        """phi(p)."""
        moved = plus(self.start, step)
        if self.loss is None:
            return self.side.loss(self.place, self.target)(moved)
        there = self.side.variables(self.place)[1](moved)
        return self.side.scale(self.place) * self.loss(applied(self.side.block, there), self.target).sum()

    @compiled_if_eager()
    def before(self) -> Scalar:
        """phi(0)."""
        scale = self.side.scale(self.place)
        if self.loss is None:
            return scale * half_square(floating_leaves(self.target))
        return scale * self.loss(self._z, self.target).sum()

    @quickly()
    def gradient(self) -> Step:
        """The gradient of phi at 0: the vjp of the block, exact to rounding at any size of the displacement."""
        outputs, pull = self.side.pull(self.place)
        if self.loss is None:
            return pull([-d for d in floating_leaves(self.target)])
        loss, (_, rebuild) = self.loss, floating(self._z)
        return pull(jax.grad(lambda leaves: loss(rebuild(leaves), self.target).sum())(outputs))

    @quickly()
    def gradient_after(self, step: Step) -> Step:
        """The gradient of phi at a step."""
        return jax.grad(self.objective)(step)

    def curvature(self) -> Callable[[Step], Step]:
        """v -> (s J^T S J) v at the start, linearized once."""
        hessian = None if self.loss is None else loss_hessian(self.loss, self._z, self.target)
        return self.side.gauss_newton(self.place, hessian)

    @quickly(static_argnums=(1, 3))
    def scalar(self, name: str, key: Key, probes: int) -> Scalar:
        """m_W or m_z of the block."""
        words = random_words(key, size(self.start), probes)
        (scalar,), _ = estimated_scalars([self.side], self.loss, name, self.place, self.target, words, probes)
        return scalar

    @property
    def _z(self) -> Activations:
        """F_b(v)."""
        return applied(self.side.block, self.place)


def norm(step: Step) -> Scalar:
    """The Euclidean norm over all leaves."""
    return jnp.sqrt(inner(step, step))


def inner(one: Step, two: Step) -> Scalar:
    """The inner product over all leaves."""
    return sum((jnp.sum(a * b) for a, b in zip(one, two, strict=True)), start=jnp.zeros((), one[0].dtype))


@compiled_if_eager()
def times(factor: Any, step: Step) -> Step:
    """factor * p."""
    return [jnp.asarray(factor, leaf.dtype) * leaf for leaf in step]


def plus(one: Step, two: Step) -> Step:
    """p + q."""
    return [a + b for a, b in zip(one, two, strict=True)]


def where(condition: Any, one: Any, two: Any) -> Any:
    """One pytree or the other, without a branch: the CPU runs convolutions slowly inside branches."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, two)
