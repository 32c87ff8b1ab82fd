"""Thick-restart block Lanczos for symmetric operators, with recomputed residuals."""

import dataclasses
from typing import Any

import numpy as np

from localhessian._programs import eigh
from localhessian._status import Status
from localhessian._types import Array, Key
from localhessian.linalg.krylov._arithmetic import Arithmetic
from localhessian.linalg.krylov._krylov import Krylov, Pairs, Recurrence, Verdict
from localhessian.linalg.krylov._plan import Plan, take_weights
from localhessian.linalg.krylov._recurrence import (
    State,
    alive,
    foretold,
    nearest_rows,
    observe,
    orthonormalize,
    pad_rows,
    put_columns,
    revive,
    shifted,
)
from localhessian.linalg.krylov._vectors import combine, mixed, start_block, unit_rows
from localhessian.linalg.operators import Operator, SymmetricOperator
from localhessian.linalg.spectra import noise, working_dtype

BREAKDOWN = 50
"""A next basis vector shorter than BREAKDOWN * eps * ||H|| is rounding: the space is invariant."""
ROUNDING = 30
"""Residuals of ROUNDING * eps * ||H|| are what rounding leaves."""


@dataclasses.dataclass(frozen=True)
class Lanczos(Krylov):
    """The ends of the spectrum of a symmetric operator, also indefinite, by its products alone.

    Full reorthogonalization; a basis that outgrows `basis_size` is restarted with the Ritz vectors nearest to the
    wanted ends, so that those which have converged stay locked in it. Stops when every wanted value meets the
    tolerance, when the space is exhausted, or at the budget. Residual norms are recomputed with fresh products of the
    Ritz vectors. A block of p start vectors sees an eigenvalue up to p times; a basis with room for the whole space
    sees all. H = R^T R in float32 resolves the small end to eps lambda_max only (use `GolubKahan` where there is a
    factor).

    Cost: at most `max_matvecs` products, one to see that they are repeatable, and one for the residual of each value
    returned; memory `basis_size * d` numbers; `4 * basis_size * d` operations for the orthogonalization of a step.
    Under `jax.jit` convergence is tested at restarts only.

    Args:
        max_matvecs: Budget of products in the recurrence.
        rtol: Wanted: residual <= rtol |lambda| (never below 30 eps lambda_max, which rounding leaves).
        which: Which end: `"both"`, `"largest"` or `"smallest"`.
        k: How many values at each end, at least; as many as eigenvectors are asked for.
        basis_size: Vectors in memory; None takes 3 k + 13 for the largest end (or 16 blocks), else what fits in 64 MiB,
            at least 32. A basis as large as the operator gives the whole spectrum.
        block_size: Start vectors p. One needs the fewest products where the wanted values are apart; more find
            multiple and clustered values.
        min_matvecs: Of the products in the recurrence, made even where the values are there sooner: for what
            `lh.spectral_density` tells by the steps before the first restart.

    Source: K. Wu and H. Simon, SIAM J. Matrix Anal. Appl. 22 (2000) 602; blocks: G. Golub and R. Underwood (1977).
    """

    def recurrence(self, operator: Operator, on: Arithmetic) -> Recurrence:
        """That of a symmetric operator."""
        if operator.symmetric is not operator:
            raise TypeError("`Lanczos` takes a symmetric operator: use `GolubKahan` for a linear map.")
        return Symmetric(operator.symmetric.prepare(), on)


class Symmetric(Recurrence):
    """H V = V B + Q C^T."""

    long: int | None = None
    is_isotropic = True
    of_factor, wrong, rounding = False, Status.NOT_SYMMETRIC, ROUNDING

    def __init__(self, prepared: SymmetricOperator, on: Arithmetic) -> None:
        """Around its products."""
        self.prepared, self.on = prepared, on
        self.batch, self.dtype = prepared.batch, prepared.dtype
        self.order = self.size = self.start_size = prepared.size

    def start(self, start: Array | None, key: Key, p: int, mix: bool) -> tuple[Any, int]:
        """Random vectors, or those given."""
        shape, dtype = (self.batch or 1, p, self.order), working_dtype(self.dtype)
        block = start_block(start, key, shape, dtype, self.on)
        if start is None or not mix:
            return block, 0
        return mixed(block, start_block(None, key, shape, dtype, self.on), self.on), 0

    def step(self, state: State, plan: Plan) -> State:
        """One product of the current block."""
        return advance(state, self._times(state.current), plan, self.on)

    def ritz(self, state: State, plan: Plan) -> tuple[Any, Any, Any, Any]:
        """Of the projected matrix made symmetric."""
        xp, rows = self.on.xp, self.on.in_use(state.row, plan.size)
        matrix, filled = state.matrix[:, :rows, :rows], state.filled[:, :rows]
        theta, weights = eigh(shifted((matrix + xp.swapaxes(matrix, 1, 2)) / 2, filled, self.on))
        return theta, None, weights, xp.sum(filled, axis=1, dtype=np.int32)

    def pairs(self, state: State, plan: Plan) -> Pairs:
        """Rayleigh quotients of Ritz vectors, and their residuals."""
        on, (_, _, weights, count) = self.on, self.ritz(state, plan)
        chosen = plan.chosen(count, weights.shape[1], on)
        ritz = unit_rows(combine(take_weights(weights, chosen, on), state.right, on), on)
        moved = self._times(ritz)
        values = on.xp.sum(ritz * moved, axis=2)
        return Pairs(values, on.lengths(moved - values[:, :, None] * ritz), chosen.real, ritz)

    def whole(self, values: Any, residuals: Any, real: Any, verdict: Verdict, rows: int) -> tuple[Any, Any, Any]:
        """A complete spectrum tells each value's place, which products rounded at their own size leave that far off."""
        xp = self.on.xp
        least = xp.where(verdict.complete, noise(self.dtype) * verdict.norm, 0)[:, None].astype(residuals.dtype)
        return values, real.astype(np.int32), xp.where(real, xp.maximum(residuals, least), residuals)

    def _times(self, block: Any) -> Any:
        return self.on.products(self.prepared.mv, block, self.batch, self.dtype)


def advance(state: State, moved: Any, plan: Plan, on: Arithmetic) -> State:
    """One step, given `moved` = H times the current block."""
    xp, p, row, small = on.xp, plan.block, state.row, state.matrix.dtype
    scale, finite, _ = observe(state, moved, on)
    right = on.put_rows(state.right, row, state.current)
    basis = right[:, : on.in_use(row + p, plan.size)]
    floor = BREAKDOWN * plan.eps * scale
    components, unit, upper = orthonormalize(basis, nearest_rows(state, 1, 1, plan, on), moved, floor, on)
    components, upper = pad_rows(components, plan.size, on).astype(small), upper.astype(small)
    places = xp.arange(plan.size, dtype=np.int32)
    others = (places < row) | (places >= row + p)
    counted = others[None, :, None] & state.live[:, None, :]
    # The components along all of the basis, so that the rows that follow a restart need no formula of their own.
    matrix = put_columns(state.matrix, row, components, on)
    state = dataclasses.replace(
        state,
        right=right,
        matrix=on.put_rows(matrix, row, xp.swapaxes(components, 1, 2)),
        filled=on.put_rows(state.filled, row, state.live),
        coupling=on.put_rows(xp.zeros_like(state.coupling), row, xp.swapaxes(upper, 1, 2)),
        row=row + p,
        made=state.made + 1,
        scale=scale,
        skew=foretold(state.skew, scale, components, state.coupling, counted, on),
        finite=finite,
        current=unit,
        live=alive(upper),
    )
    return revive(state, basis, plan, on)
