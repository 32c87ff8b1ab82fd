"""Solvers of the two argmins of Procedure 1, for either side; frozen, printable, hashable.

A solver proposes a step; the trust rule of `propagate` undoes it where the back-matching loss does not go down.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import optax

from localhessian._arguments import expect_count, expect_number, short
from localhessian._programs import compiled_if_eager
from localhessian._status import Status
from localhessian._types import Array, Key
from localhessian.curvature import check_scalar
from localhessian.training._linear import damped_newton, least_squares
from localhessian.training._problem import Problem, Step, inner, norm, plus, times, where


@runtime_checkable
class Solver(Protocol):
    """How a step of one side of a block is found: what `lh.propagate` takes, and what one of your own has to offer.

    Use frozen dataclasses, as those here: they print, compare and hash. The problem tells `start`, the variables, one
    array for each floating-point leaf of W_b or z_{b-1}; `gradient()` of phi there; `objective(step)`, phi(p) as a
    function to differentiate; `curvature()`, a function v -> G v. All of it may be traced.

    Source: docs/training.md has one in ten lines.
    """

    @property
    def trusted(self) -> bool:
        """Whether a step that raises the loss stays: plain gradient steps are what the user asked for."""

    def init(self, problem: Problem) -> Any:
        """The state before the first step: a pytree of arrays, or (), as of those that inherit from here."""
        del problem
        return ()

    def solve(self, problem: Problem, state: Any, key: Key) -> tuple[Step, Any, Array]:
        """A step, arrays like `problem.start`, the state for the next call, and a `localhessian.Status` code."""


def _status(status: Status) -> Array:
    return jnp.asarray(int(status), jnp.int32)


@dataclasses.dataclass(frozen=True)
class GradientStep(Solver):
    """p = -rate * gradient of phi. On both sides (rate 1 for the input) this is back-propagation.

    Args:
        rate: The step size; a number, or a traced scalar.
    """

    rate: Any = 1.0
    trusted = True

    def __post_init__(self) -> None:
        """Refuse a rate that is none."""
        expect_number("rate", self.rate)

    def solve(self, problem: Problem, state: Any, key: Key) -> tuple[Step, Any, Array]:
        """Cost: one vjp of the block."""
        del key
        return times(-self.rate, problem.gradient()), state, _status(Status.CONVERGED)


@dataclasses.dataclass(frozen=True)
class ScaledGradient:
    """p = -(rate / m) * gradient, m a scalar for the local Hessian: Algorithm 2, refreshed at every step.

    Args:
        rate: The step size.
        scalar: `mean`, `range_mean` or `max`, as in `lh.scale_by_local_hessian`.
        probes: Random vectors of the estimate.
        damping: Added to m, relative to the largest m seen.

    """

    rate: Any = 1.0
    scalar: str = "mean"
    probes: int = 2
    damping: float = 1e-3
    trusted = False

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        expect_number("rate", self.rate)
        check_scalar(self.scalar)
        expect_count("probes", self.probes, 2)
        expect_number("damping", self.damping)

    def init(self, problem: Problem) -> Any:
        """The largest m seen."""
        return jnp.zeros((), problem.start[0].dtype)

    def solve(self, problem: Problem, state: Any, key: Key) -> tuple[Step, Any, Array]:
        """Cost: one vjp and `probes` jvps of the block, with `max` as many vjps too."""
        m = problem.scalar(self.scalar, key, self.probes)
        return *_divided(problem.gradient(), m, state, self.rate, self.damping), _status(Status.CONVERGED)


@compiled_if_eager()
def _divided(gradient: Step, m: Array, largest: Array, rate: Any, damping: Any) -> tuple[Step, Array]:
    """The step, and the largest m seen."""
    m = m.astype(largest.dtype)
    largest = jnp.maximum(largest, m)
    m = m + damping * largest
    return times(-rate / jnp.where(m > 0, m, 1), gradient), largest


@dataclasses.dataclass(frozen=True)
class OptaxSteps:
    """`n` steps of an optax optimizer on phi, from where the variables are.

    Args:
        optimizer: Any optax optimizer that needs gradients and values only. On the parameters its state goes on from
            call to call; on the input it begins anew, because the samples differ.
        n: Steps.
    """

    optimizer: optax.GradientTransformation
    n: int = 5
    trusted = False

    def __post_init__(self) -> None:
        """Refuse what is no optimizer, and no steps."""
        if not isinstance(self.optimizer, optax.GradientTransformation):
            raise TypeError(f"`optimizer` must be one of optax, as `optax.adam(1e-3)`, got {short(self.optimizer)}.")
        expect_count("n", self.n, 1)

    def init(self, problem: Problem) -> Any:
        """The optimizer's state; none for the input."""
        return () if problem.side.per_sample else self.optimizer.init(problem.start)

    def solve(self, problem: Problem, state: Any, key: Key) -> tuple[Step, Any, Array]:
        """Cost: n gradients of the block."""
        del key
        anew = problem.side.per_sample
        current = self.optimizer.init(problem.start) if anew else state
        step = [jnp.zeros_like(leaf) for leaf in problem.start]
        for i in range(self.n):  # unrolled: convolutions run slowly in loops on the CPU
            gradient = problem.gradient_after(step) if i else problem.gradient()
            updates, current = self.optimizer.update(gradient, current, plus(problem.start, step))
            step = plus(step, updates)
        return step, state if anew else current, _status(Status.CONVERGED)


@dataclasses.dataclass(frozen=True)
class GaussNewton(Solver):
    """p = -(G + damping I)^-1 gradient, G the Gauss-Newton part of the local Hessian, by conjugate gradients.

    Args:
        damping: lambda, absolute, in the units of G.
        iterations: Of conjugate gradients, at most; a residual below `rtol` of the gradient ends them.
        rtol: Relative residual.
    """

    damping: float = 1e-3
    iterations: int = 10
    rtol: float = 1e-4
    trusted = False

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        _check_iteration(self)

    def solve(self, problem: Problem, state: Any, key: Key) -> tuple[Step, Any, Array]:
        """Cost: one vjp, and `iterations` products with G (a jvp and a vjp each)."""
        del key
        step, status = damped_newton(problem, problem.gradient(), self.damping, self.iterations, self.rtol)
        return step, state, status


def _check_iteration(solver: Any) -> None:
    expect_number("damping", solver.damping)
    expect_count("iterations", solver.iterations, 1)
    expect_number("rtol", solver.rtol)


@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt:
    """Gauss-Newton steps whose damping adapts: one that keeps what the model promised lowers it, a bad one raises it.

    The ratio is of what phi went down by to what the model does, m(p) = phi(0) + g^T p + 1/2 p^T G p, *without* the
    damping: for p = -(G + damping I)^-1 g it is phi(0) - m(p) = 1/2 p^T (damping p - g). A step is taken where the
    ratio is above 0.1; below 1/4 the damping goes up, above 3/4 down.

    Args:
        damping: At the beginning, absolute.
        iterations: Of conjugate gradients.
        rtol: Their relative residual.
        up: Factor on the damping where the ratio is below 1/4.
        down: Factor where it is above 3/4.

    Source: K. Levenberg (1944); Nocedal & Wright (2006), algorithm 4.1 and chapter 10; Madsen, Nielsen & Tingleff
    (2004), eq. 3.14.
    """

    damping: float = 1.0
    iterations: int = 10
    rtol: float = 1e-4
    up: float = 4.0
    down: float = 0.5
    trusted = False

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        _check_iteration(self)
        expect_number("up", self.up, 1.0)
        expect_number("down", self.down, below=1.0)

    def init(self, problem: Problem) -> Any:
        """The damping."""
        return jnp.asarray(self.damping, problem.start[0].dtype)

    def solve(self, problem: Problem, state: Any, key: Key) -> tuple[Step, Any, Array]:
        """Cost: that of `GaussNewton`, and two values of phi."""
        del key
        gradient = problem.gradient()
        found = damped_newton(problem, gradient, state, self.iterations, self.rtol)
        return _rated(problem, gradient, *found, state, self.up, self.down)


@compiled_if_eager()
def _rated(
    problem: Problem, gradient: Step, step: Step, status: Array, damping: Array, up: Any, down: Any
) -> tuple[Step, Array, Array]:
    """The step if it is good, the next damping, and a status."""
    # Steps of conjugate gradients are orthogonal to their residual, so this holds for those that stopped early too.
    promised = 0.5 * inner(step, plus(times(damping, step), times(-1.0, gradient)))
    gained = problem.before() - problem.objective(step)
    ratio = gained / jnp.where(promised > 0, promised, 1)
    good = jnp.isfinite(ratio) & (ratio > 0.1)
    status = jnp.where(good | (norm(gradient) == 0), status, int(Status.REJECTED))
    rated = jnp.where(ratio > 0.75, down * damping, jnp.where(ratio < 0.25, up * damping, damping))
    next_damping = jnp.where(good, rated, up * damping).astype(damping.dtype)
    return where(good, step, list(map(jnp.zeros_like, step))), next_damping, status.astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class LeastSquares(Solver):
    """The exact minimizer for a block that is affine in the variables, of least norm: a dense least-squares solve.

    For the input each sample has a problem of its own (an uncoupled block). On the input side, with every other step a
    gradient step, this is Gauss-Newton target propagation.

    Args:
        ridge: Tikhonov term, relative to the largest squared singular value; singular values below
            `sqrt(ridge)` of the largest hardly count.
        max_numbers: Largest explicit Jacobian.

    Source: Meulemans et al. (2020), Gauss-Newton targets.
    """

    ridge: float = 0.0
    max_numbers: int = 2**26
    trusted = False

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        expect_number("ridge", self.ridge)
        expect_count("max_numbers", self.max_numbers, 1)

    def solve(self, problem: Problem, state: Any, key: Key) -> tuple[Step, Any, Array]:
        """Cost: as many jvps as there are variables (of one sample), and a dense decomposition.

        Raises:
            ValueError: The last block, whose loss is no square; a Jacobian beyond `max_numbers`.
        """
        if problem.loss is not None:
            raise ValueError(
                "`LeastSquares` needs a back-matching loss, which is a square, and the last block has the model's own: "
                "give it another solver, as in `{'head': GradientStep(0.1)}` for a block named `head`."
            )
        step, status = least_squares(problem, self.ridge, self.max_numbers)
        return step, state, status
