"""The two argmins of a block as one problem: find a step that lowers the back-matching loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from localhessian._tree import floating, pytree, size, static
from localhessian._types import Activations, Array, Context, Loss, Params, Scalar
from localhessian.curvature import local_scalar, random_words
from localhessian.network import Block

Step = list[Array]
"""One array for each floating-point leaf of the variables."""


@pytree
class Problem:
    """Minimize phi over a step p of the variables, which are W_b or z_{b-1}.

    phi(p) = s sum_i 1/2 ||delta_b[i] - (F_b(v + p) - F_b(v))[i]||^2, of the last block s sum_i loss(F_B(v + p), y)[i];
    s = 1/n for W (phi is l_b) and 1 for z (phi is n l_b, as docs/theory.md, 2 defines the unit step).
    """

    params: Params
    z: Activations
    context: Context
    target: Any
    """delta_b on the leaves of z_b; of the last block y."""
    block: Block = static()
    loss: Loss | None = static()
    """Of the last block; None before it."""
    wrt: str = static()

    @property
    def samples(self) -> int:
        """The number of samples n."""
        return jax.tree.leaves(self.z)[0].shape[0]

    @property
    def scale(self) -> float:
        """The s of phi."""
        return 1 / self.samples if self.wrt == "params" else 1.0

    @property
    def start(self) -> Step:
        """The variables v."""
        return floating(self.params if self.wrt == "params" else self.z)[0]

    def outputs(self, step: Step | None = None) -> Activations:
        """F_b(v + p)."""
        params, z = self.params, self.z
        if step is not None:
            _, rebuild = floating(params if self.wrt == "params" else z)
            moved = rebuild([v + p for v, p in zip(self.start, step, strict=True)])
            params, z = (moved, z) if self.wrt == "params" else (params, moved)
        return self.block(params, z, self.context)

    def objective(self, step: Step) -> Scalar:
        """phi(p). The center is computed in the same program, so that small displacements survive."""
        if self.loss is not None:
            return self.scale * self.loss(self.outputs(step), self.target).sum()
        center = jax.lax.stop_gradient(floating(self.outputs())[0])
        moved = floating(self.outputs(step))[0]
        gaps = [d - (f - c) for d, f, c in zip(floating(self.target)[0], moved, center, strict=True)]
        return self.scale * sum((0.5 * jnp.sum(gap**2) for gap in gaps), start=jnp.zeros((), gaps[0].dtype))

    def gradient(self) -> Step:
        """The gradient of phi at 0: the vjp of the block, exact to rounding at any size of the displacement."""
        outputs, pull = jax.vjp(self.of_variables, self.start)
        if self.loss is None:
            residual = [-d for d in floating(self.target)[0]]
        else:
            residual = jax.grad(self._total(self.loss))(outputs)
        return [self.scale * leaf for leaf in pull(residual)[0]]

    def curvature(self):
        """v -> (s J^T S J) v at the start, linearized once."""
        _, jvp = jax.linearize(self.of_variables, self.start)
        back = jax.linear_transpose(jvp, self.start)
        hessian = None
        if self.loss is not None:
            hessian = jax.linearize(jax.grad(self._total(self.loss)), self.of_variables(self.start))[1]

        def product(step: Step) -> Step:
            image = jvp(step)
            return [self.scale * leaf for leaf in back(image if hessian is None else hessian(image))[0]]

        return product

    def _total(self, loss: Loss) -> Callable[[Step], Scalar]:
        """The sum of the losses as a function of the outputs."""
        rebuild = floating(self.outputs())[1]
        return lambda leaves: loss(rebuild(leaves), self.target).sum()

    def scalar(self, name: str, key: Any, probes: int) -> Scalar:
        """m_W or m_z of the block."""
        y = self.target if self.loss is not None else None
        where = (self.params, self.z, y, self.context)
        words = random_words(key, size(self.start), probes)
        return local_scalar(self.block, self.loss, self.wrt, name, *where, words, probes)

    def of_variables(self, variables: Step) -> Step:
        """The floating-point outputs as a function of the variables."""
        _, rebuild = floating(self.params if self.wrt == "params" else self.z)
        filled = rebuild(variables)
        params, z = (filled, self.z) if self.wrt == "params" else (self.params, filled)
        return floating(self.block(params, z, self.context))[0]


def norm(step: Step) -> Scalar:
    """The Euclidean norm over all leaves."""
    return jnp.sqrt(inner(step, step))


def inner(one: Step, two: Step) -> Scalar:
    """The inner product over all leaves."""
    return sum((jnp.sum(a * b) for a, b in zip(one, two, strict=True)), start=jnp.zeros((), one[0].dtype))


def times(factor: Any, step: Step) -> Step:
    """factor * p."""
    return [jnp.asarray(factor, leaf.dtype) * leaf for leaf in step]


def plus(one: Step, two: Step) -> Step:
    """p + q."""
    return [a + b for a, b in zip(one, two, strict=True)]


def where(condition: Any, one: Any, two: Any) -> Any:
    """One pytree or the other, without a branch: the CPU runs convolutions slowly inside branches."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, two)
