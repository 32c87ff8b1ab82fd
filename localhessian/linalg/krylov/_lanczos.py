"""Thick-restart block Lanczos for symmetric operators, with recomputed residuals."""

import dataclasses
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from localhessian._progress import Progress
from localhessian._status import Status
from localhessian._types import Array, Key
from localhessian.linalg.krylov._krylov import Krylov, Plan, judge, products, repeats, shifted, take_weights
from localhessian.linalg.krylov._recurrence import (
    State,
    alive,
    begin,
    compress,
    drive,
    finished,
    foretold,
    in_use,
    nearest_rows,
    observe,
    orthonormalize,
    pad_rows,
    put_columns,
    put_rows,
    residual_norms,
    retire,
    revive,
    run_compiled,
)
from localhessian.linalg.krylov._vectors import (
    combine,
    largest_vectors,
    lengths,
    mixed,
    sort_real_first,
    start_block,
    unbatched_all,
    unit_rows,
)
from localhessian.linalg.spectra import Spectrum, SpectrumInterrupt, noise, working_dtype

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

    Source: K. Wu and H. Simon, SIAM J. Matrix Anal. Appl. 22 (2000) 602; blocks: G. Golub and R. Underwood (1977).
    """

    def compute(
        self, operator: Any, key: Key, vectors: int, start: Array | None, show: Progress, xp: ModuleType
    ) -> Spectrum:
        """The method itself."""
        if operator.symmetric is not operator:
            raise TypeError("`Lanczos` takes a symmetric operator: use `GolubKahan` for a linear map.")
        prepared = operator.prepare()
        batch, dtype = prepared.batch, working_dtype(prepared.dtype)
        lead, d = batch or 1, prepared.size
        plan = self.plan(d, lead * d, prepared.dtype, vectors)
        shape = (lead, plan.block, d)
        block = start_block(start, key, shape, dtype, xp)
        if start is not None and self.which != "largest":
            block = mixed(block, start_block(None, key, shape, dtype, xp), xp)
        state = begin(block, None, plan, key, xp)
        first = state.current

        def multiplied(block: Any) -> Any:
            return products(prepared.mv, block, batch, prepared.dtype, xp)

        def step(state: State) -> State:
            return advance(state, multiplied(state.current), plan, xp)

        def restart(state: State) -> State:
            return _restart(state, plan, xp)

        if xp is np:
            tell = lambda steps: show(steps * plan.block, plan.steps * plan.block, operator.label)
            settled = lambda state: _examine(state, plan, np)[0]
            state, interrupted = drive(step, restart, settled, state, plan, tell)
        else:
            interrupted = False
            state = run_compiled(step, restart, state, plan)
        _, weights, count = _ritz(state, plan, xp)
        chosen = plan.chosen(count, weights.shape[1], xp)
        ritz = unit_rows(combine(take_weights(weights, chosen, xp), state.right, xp), xp)
        moved = multiplied(ritz)
        values = xp.sum(ritz * moved, axis=2)
        residuals = lengths(moved - values[:, :, None] * ritz, xp)
        repeated = repeats(multiplied, state, first, plan, xp)
        found = judge(values, residuals, chosen.real, state, Status.NOT_SYMMETRIC, repeated, 2 * ROUNDING, plan, xp)
        largest = largest_vectors(ritz, values, found.real, vectors, xp)
        values, real, residuals = sort_real_first(values, found.real, residuals, xp=xp)
        made = xp.asarray(state.made * plan.block + ritz.shape[1], np.int32)
        norm = xp.fmax(state.scale, xp.max(xp.where(real, xp.abs(values), 0), axis=1))
        # A complete spectrum tells each value's place, which products rounded at their own size leave that far off.
        least = xp.where(found.complete, noise(prepared.dtype) * norm, 0)[:, None].astype(residuals.dtype)
        residuals = xp.where(real, xp.maximum(residuals, least), residuals)
        parts = (values, real.astype(np.int32), residuals, largest, found.status, found.complete, norm)
        values, multiplicities, residuals, largest, status, complete, norm = unbatched_all(parts, batch, dtype)
        spectrum = Spectrum(
            eigenvalues=values,
            multiplicities=multiplicities,
            residual_norms=residuals,
            vectors=largest,
            singular_values=None,
            singular_residual_norms=None,
            status=status,
            complete=complete,
            matvecs=jnp.asarray(made),
            size=d,
            dtype=prepared.dtype,
            method=str(self),
            missing=jnp.where(complete, 0, jnp.inf).astype(values.dtype),
            krylov_steps=jnp.minimum(jnp.asarray(state.made, np.int32), plan.size // plan.block),
            start_size=d if start is None else 0,
            ends=self.which,
            norm=norm,
        )
        if interrupted:
            raise SpectrumInterrupt(spectrum)
        return spectrum


def advance(state: State, moved: Any, plan: Plan, xp: Any) -> State:
    """One step, given `moved` = H times the current block."""
    p, row, small = plan.block, state.row, state.matrix.dtype
    scale, finite, _ = observe(state, moved, xp)
    basis = in_use(put_rows(state.right, row, state.current, xp), row + p, xp)
    floor = BREAKDOWN * plan.eps * scale
    components, unit, upper = orthonormalize(basis, nearest_rows(state, 1, 1, plan, xp), moved, floor, xp)
    components, upper = pad_rows(components, plan.size, xp).astype(small), upper.astype(small)
    places = xp.arange(plan.size, dtype=np.int32)
    others = (places < row) | (places >= row + p)
    counted = others[None, :, None] & state.live[:, None, :]
    # The components along all of the basis, so that the rows that follow a restart need no formula of their own.
    matrix = put_columns(state.matrix, row, components, xp)
    state = dataclasses.replace(
        state,
        right=state.right if xp is np else basis,
        matrix=put_rows(matrix, row, xp.swapaxes(components, 1, 2), xp),
        filled=put_rows(state.filled, row, state.live, xp),
        coupling=put_rows(xp.zeros_like(state.coupling), row, xp.swapaxes(upper, 1, 2), xp),
        row=row + p,
        made=state.made + 1,
        scale=scale,
        skew=foretold(state.skew, scale, components, state.coupling, counted, xp),
        finite=finite,
        current=unit,
        live=alive(upper),
    )
    return revive(state, basis, plan, xp)


def _restart(state: State, plan: Plan, xp: Any) -> State:
    """The kept Ritz vectors become the basis."""
    settled, (theta, weights, count) = _examine(state, plan, xp)
    chosen = plan.kept(count, xp)
    values = xp.where(chosen.real, xp.take_along_axis(theta, chosen.places, 1), 0)
    weights = take_weights(weights, chosen, xp)
    return retire(compress(state, weights, None, values, chosen.real, plan, xp), settled, xp)


def _examine(state: State, plan: Plan, xp: Any) -> tuple[Any, tuple[Any, Any, Any]]:
    """Which problems have every wanted value, and the decomposition that tells."""
    theta, weights, count = _ritz(state, plan, xp)
    errors = residual_norms(state, weights, xp)
    return finished(state, plan.settled(theta, errors, count, state.scale, ROUNDING, xp), plan), (theta, weights, count)


def _ritz(state: State, plan: Plan, xp: Any) -> tuple[Any, Any, Any]:
    """Ritz values ascending (s, K), their weights (s, K, K), and how many are real; empty slots stand last."""
    rows = state.row if xp is np else plan.size
    matrix, filled = state.matrix[:, :rows, :rows], state.filled[:, :rows]
    theta, weights = xp.linalg.eigh(shifted((matrix + xp.swapaxes(matrix, 1, 2)) / 2, filled, xp))
    return theta, weights, xp.sum(filled, axis=1, dtype=np.int32)
