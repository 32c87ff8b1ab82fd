"""Thick-restart block Golub-Kahan of a factor: the small end without squaring, residuals recomputed."""

import dataclasses
from typing import Any

import numpy as np

from localhessian._programs import svd
from localhessian._status import Status
from localhessian._types import Array, Key
from localhessian.linalg.krylov._arithmetic import Arithmetic
from localhessian.linalg.krylov._krylov import Krylov, Pairs, Recurrence, Verdict
from localhessian.linalg.krylov._plan import Plan, take_weights
from localhessian.linalg.krylov._recurrence import (
    State,
    alive,
    fill_up,
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
from localhessian.linalg.operators import LinearMap, Operator
from localhessian.linalg.spectra import working_dtype

BREAKDOWN = 30
"""A next basis vector shorter than BREAKDOWN * eps * ||A|| is rounding; below the rank rule's 100 eps."""
ROUNDING = 20
"""Residuals of ROUNDING * eps * ||A|| are what rounding leaves."""


@dataclasses.dataclass(frozen=True)
class GolubKahan(Krylov):
    """The ends of the spectrum of R^T R by products with R and R^T, at the accuracy of R's singular values.

    Runs on the smaller side of R and, unless only the largest values are sought, starts in its range, so that null
    vectors of R^T R are not met; full reorthogonalization on both sides; bases that outgrow `basis_size` are restarted
    with the singular triplets nearest to the wanted ends. Stops when every wanted value meets the tolerance, when the
    range is exhausted, or at the budget. Residual norms of the triplets are recomputed with fresh products. A block of
    p start vectors sees a value up to p times; bases with room for the whole space see all. The small end converges
    slowly, and more slowly with a short basis (harmonic Ritz vectors in place of Ritz vectors were tried: no faster):
    until it does, the status says so and kappa is a lower bound.

    Cost: at most `max_matvecs` pairs of products with R and R^T, one for a start in the range, and one for the residual
    of each value returned; memory `basis_size * (d + m)` numbers. Under `jax.jit` convergence is tested at restarts
    only.

    Args:
        max_matvecs: Budget of pairs of products in the recurrence.
        rtol: Wanted: residual <= rtol sigma (never below 20 eps sigma_max, which rounding leaves).
        which: Which end: `"both"`, `"largest"` or `"smallest"`.
        k: How many values at each end, at least; as many as eigenvectors are asked for.
        basis_size: Pairs of vectors in memory; None takes 3 k + 13 for the largest end (or 16 blocks), else what fits
            in 64 MiB, at least 32. Bases as large as the smaller side give the whole spectrum.
        block_size: Start vectors p. One needs the fewest products where the wanted values are apart; more find
            multiple and clustered values.
        min_matvecs: Of the pairs in the recurrence, made even where the values are there sooner: for what
            `lh.spectral_density` tells by the steps before the first restart.

    Source: J. Baglama and L. Reichel, SIAM J. Sci. Comput. 27 (2005) 19.
    """

    def recurrence(self, operator: Operator, on: Arithmetic) -> Recurrence:
        """That of the factor."""
        if operator.factor is None:
            raise ValueError(
                f"`GolubKahan` needs a factor R with H = R^T R, and {operator.label or 'the operator'} has none: use "
                "`Lanczos(...)` or `Dense(...)`."
            )
        return Bidiagonal(operator.factor, on, in_range=self.which != "largest")


class Bidiagonal(Recurrence):
    """A V = U B, A^T U = V B^T + Q C^T, with A = R or R^T, whichever takes the shorter vectors.

    Started on the wide side it would find the null space instead of the smallest value.
    """

    of_factor, wrong, rounding = True, Status.NOT_ADJOINT, ROUNDING

    def __init__(self, factor: LinearMap, on: Arithmetic, in_range: bool) -> None:
        """Around its products, of the prepared factor; `in_range`: whether random starts lie in the range of A^T."""
        self.wide = factor.out_size < factor.in_size
        self.prepared, self.on = (factor.T if self.wide else factor).prepare(), on
        self.batch, self.dtype, self.size = factor.batch, factor.dtype, factor.in_size
        self.order, self.long = self.prepared.in_size, self.prepared.out_size
        self.start_size, self.is_isotropic = self.long if in_range else self.order, not in_range

    def start(self, start: Array | None, key: Key, p: int, mix: bool) -> tuple[Any, int]:
        """A block in the range of A^T, or anywhere; `start` holds vectors of the side of R that it multiplies."""
        on, dtype, s = self.on, working_dtype(self.dtype), self.batch or 1
        anywhere = start_block(None, key, (s, p, self.order), dtype, on)
        if start is None and self.is_isotropic:
            return anywhere, 0
        if start is None or mix:
            random = self._backward(start_block(None, key, (s, p, self.prepared.out_size), dtype, on))
        if start is None:
            block = random
        else:
            block = start_block(start, key, (s, p, self.size), dtype, on)
            block = self._backward(block) if self.wide else block
            block = mixed(block, random, on) if mix else block
        # A = 0 has no range: any vector shows that.
        return on.xp.where(~on.xp.any(block, axis=(1, 2))[:, None, None], anywhere, block), 1

    def step(self, state: State, plan: Plan) -> State:
        """A product of the current block, and one back."""
        state, left = left_half(state, self._forward(state.current), plan, self.on)
        return right_half(state, self._backward(left), plan, self.on)

    def ritz(self, state: State, plan: Plan) -> tuple[Any, Any, Any, Any]:
        """Singular values, and weights of both sides.

        A start in the range of A^T meets null vectors only by rounding, which grows as the range is exhausted: values
        that the rank rule counts as zero are no news then, and are dropped, unless the space is whole.
        """
        xp, rows = self.on.xp, self.on.in_use(state.row, plan.size)
        matrix, filled = state.matrix[:, :rows, :rows], state.filled[:, :rows]
        left, sigma, right = svd(shifted(matrix, filled, self.on))
        left, sigma, right = left[:, :, ::-1], sigma[:, ::-1], xp.swapaxes(right, 1, 2)[:, :, ::-1]
        count = xp.sum(filled, axis=1, dtype=np.int32, keepdims=True)
        real = xp.arange(rows, dtype=np.int32)[None, :] < count
        top = xp.max(xp.where(real, sigma, 0), axis=1, keepdims=True)
        real = real & ((sigma >= plan.cutoff * top) | (count >= plan.order))
        order = xp.argsort(xp.where(real, sigma, xp.inf), axis=1)
        left, right = (xp.take_along_axis(part, order[:, None, :], 2) for part in (left, right))
        return xp.take_along_axis(sigma, order, 1), left, right, xp.sum(real, axis=1, dtype=np.int32)

    def pairs(self, state: State, plan: Plan) -> Pairs:
        """Singular triplets, and the size of both their residuals together."""
        on, (_, left, right, count) = self.on, self.ritz(state, plan)
        chosen = plan.chosen(count, right.shape[1], on)
        u = unit_rows(combine(take_weights(left, chosen, on), state.left, on), on)
        v = unit_rows(combine(take_weights(right, chosen, on), state.right, on), on)
        moved = self._forward(v)
        sigma = on.xp.abs(on.xp.sum(u * moved, axis=2))
        errors = (moved - sigma[:, :, None] * u, self._backward(u) - sigma[:, :, None] * v)
        return Pairs(sigma, on.xp.hypot(*map(on.lengths, errors)), chosen.real, u if self.wide else v)

    def whole(self, values: Any, residuals: Any, real: Any, verdict: Verdict, rows: int) -> tuple[Any, Any, Any]:
        """With one more value 0, of the multiplicity d - m that a wide R makes certain, where all else is seen."""
        xp, multiplicities = self.on.xp, real.astype(np.int32)
        missing = self.size - self.order
        if not missing or rows < self.order:
            return values, multiplicities, residuals
        zero = xp.zeros_like(values[:, :1])
        parts = ((zero, values), (xp.full(zero.shape, missing, np.int32), multiplicities), (zero, residuals))
        values, multiplicities, residuals = (xp.concatenate(part, axis=1) for part in parts)
        return values, multiplicities, residuals

    def _forward(self, block: Any) -> Any:
        return self.on.products(self.prepared.mv, block, self.batch, self.dtype)

    def _backward(self, block: Any) -> Any:
        return self.on.products(self.prepared.rmv, block, self.batch, self.dtype)


def left_half(state: State, moved: Any, plan: Plan, on: Arithmetic) -> tuple[State, Any]:
    """The first half of a step, given `moved` = A times the current block; also the new left vectors."""
    row, small = state.row, state.matrix.dtype
    scale, finite, norms = observe(state, moved, on)
    floor = BREAKDOWN * plan.eps * scale
    left: Any = state.left
    basis, nearest = left[:, : on.in_use(row, plan.size)], nearest_rows(state, 1, 0, plan, on)
    components, unit, upper = orthonormalize(basis, nearest, moved, floor, on)
    components = pad_rows(components, plan.size, on).astype(small)
    skew = foretold(state.skew, scale, components, state.coupling, state.live[:, None, :], on)
    # The components along all of U, so that the columns that follow a restart need no formula of their own.
    components = on.put_rows(components, row, upper.astype(small))
    # A vector with A v = 0 is the answer where the space is seen whole, or for A = 0, and any left vector will do; else
    # it is rounding. One with A v along U, of a start beyond the range, is the last, and has no left vector.
    live = alive(upper)
    answer = state.live & ~live & (plan.whole | (state.made == 0))
    state, unit, live = fill_up(state, basis, unit, live, answer, plan, on)
    state = dataclasses.replace(
        state,
        right=on.put_rows(state.right, row, state.current),
        left=on.put_rows(state.left, row, unit),
        matrix=put_columns(state.matrix, row, components, on),
        filled=on.put_rows(state.filled, row, state.live & (live | (norms > floor[:, None]))),
        scale=scale,
        skew=skew,
        finite=finite,
    )
    return state, unit


def right_half(state: State, moved: Any, plan: Plan, on: Arithmetic) -> State:
    """The second half of a step, given `moved` = A^T times the last left vectors."""
    xp, row, p, small = on.xp, state.row, plan.block, state.matrix.dtype
    scale, finite, norms = observe(state, moved, on)
    basis, nearest = state.right[:, : on.in_use(row + p, plan.size)], nearest_rows(state, 0, 1, plan, on)
    components, unit, upper = orthonormalize(basis, nearest, moved, BREAKDOWN * plan.eps * scale, on)
    expected = xp.swapaxes(on.take_rows(state.matrix, row, p), 1, 2)
    components = pad_rows(components, plan.size, on).astype(small)
    state = dataclasses.replace(
        state,
        coupling=on.put_rows(xp.zeros_like(state.coupling), row, xp.swapaxes(upper, 1, 2).astype(small)),
        row=row + p,
        made=state.made + 1,
        scale=scale,
        skew=foretold(state.skew, scale, components, expected, (norms > 0)[:, None, :], on),
        finite=finite,
        current=unit,
        live=alive(upper),
    )
    return revive(state, basis, plan, on)
