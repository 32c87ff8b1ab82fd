"""Linear systems with the Gauss-Newton part: conjugate gradients, and dense least squares."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from localhessian._programs import svd
from localhessian._status import Status
from localhessian._tree import floating_leaves
from localhessian._types import Array
from localhessian.linalg import cutoff, eps_of, quickly, repeat
from localhessian.network import Arrangement
from localhessian.training._problem import Problem, Step, inner, norm, plus, times, where


@quickly(static_argnums=(3,))
def damped_newton(problem: Problem, gradient: Step, damping: Any, iterations: int, rtol: Any) -> tuple[Step, Array]:
    """-(G + damping I)^-1 gradient by conjugate gradients, and a status.

    JAX's own solver iterates in a `while_loop`, in which the CPU runs convolutions a hundred times slower; this one
    makes a fixed number of iterations, unrolled there, and stands still once the residual is small.
    """
    curvature = problem.curvature()
    enough = rtol**2 * inner(gradient, gradient)

    def iterate(state: tuple) -> tuple:
        step, residual, direction, square = state
        moved = plus(curvature(direction), times(damping, direction))
        bend = inner(direction, moved)
        going = (square > enough) & (bend > 0)
        alpha = jnp.where(going, square / jnp.where(bend > 0, bend, 1), 0)
        step, residual_next = plus(step, times(alpha, direction)), plus(residual, times(-alpha, moved))
        square_next = inner(residual_next, residual_next)
        beta = square_next / jnp.where(square > 0, square, 1)
        after = (step, residual_next, plus(residual_next, times(beta, direction)), square_next)
        return where(going, after, state)

    down = times(-1.0, gradient)
    state = ([jnp.zeros_like(leaf) for leaf in gradient], down, down, inner(gradient, gradient))
    state = repeat(iterate, state, iterations, few=iterations)
    done = jnp.where(state[3] <= enough, int(Status.CONVERGED), int(Status.BUDGET_SPENT)).astype(jnp.int32)
    return state[0], done


@quickly(static_argnums=(2,))
def least_squares(problem: Problem, ridge: Any, max_numbers: int) -> tuple[Step, Array]:
    """argmin sum_i 1/2 ||delta_b[i] - (J p)[i]||^2 of least norm (of the input, sample by sample), and a status.

    Raises:
        ValueError: The Jacobian has more than `max_numbers` numbers.
    """
    targets = floating_leaves(problem.target)
    arrangement = Arrangement.ROWS if problem.side.per_sample else Arrangement.BATCH
    start, unravel = arrangement.lay(problem.start)
    target = jnp.atleast_2d(arrangement.lay(targets)[0])  # a row for each problem
    shape = (*target.shape, start.shape[-1])
    numbers = math.prod(shape)
    if numbers > max_numbers:
        raise ValueError(
            f"`LeastSquares(max_numbers={max_numbers})` cannot hold a Jacobian of {numbers} numbers (block with "
            f"{shape[2]} variables and {shape[1]} outputs): use `GaussNewton(...)`, or raise `max_numbers`."
        )
    _, jvp = jax.linearize(problem.of_variables, problem.start)

    def column(unit: Array) -> Array:
        return jnp.atleast_2d(arrangement.lay(jvp(unravel(jnp.broadcast_to(unit, start.shape))))[0])

    jacobian = jax.vmap(column, out_axes=-1)(jnp.eye(shape[2], dtype=target.dtype))
    left, sigma, right = svd(jacobian)
    top = sigma[:, :1]
    kept = sigma > cutoff(target.dtype) * top
    weights = jnp.where(kept, sigma / jnp.where(kept, sigma**2 + ridge * top**2, 1), 0)
    highest = jax.lax.Precision.HIGHEST
    parts = weights * jnp.einsum("smk,sm->sk", left, target, precision=highest)
    solution = jnp.einsum("skd,sk->sd", right, parts, precision=highest)
    step = unravel(solution.reshape(start.shape))
    return step, _whether_affine(problem, step)


def _whether_affine(problem: Problem, step: Step) -> Array:
    """A status: whether the block moves as its linearization says."""
    center, image = jax.jvp(problem.of_variables, (problem.start,), (step,))
    moved = problem.of_variables(plus(problem.start, step))
    gap = [m - c - i for m, c, i in zip(moved, center, image, strict=True)]
    is_affine = norm(gap) <= 1e3 * eps_of(step[0].dtype) * (norm(center) + norm(moved))
    return jnp.where(is_affine, int(Status.CONVERGED), int(Status.NOT_AFFINE)).astype(jnp.int32)
