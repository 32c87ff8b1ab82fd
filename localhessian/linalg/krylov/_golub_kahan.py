"""Thick-restart block Golub-Kahan of a factor: the small end without squaring, residuals recomputed."""

import dataclasses
from collections.abc import Callable
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
    fill_up,
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
    take_rows,
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
from localhessian.linalg.spectra import Spectrum, SpectrumInterrupt, working_dtype

BREAKDOWN = 30
"""A next basis vector shorter than BREAKDOWN * eps * ||A|| is rounding; below the rank rule's 100 eps."""
ROUNDING = 20
"""Residuals of ROUNDING * eps * ||A|| are what rounding leaves."""


@dataclasses.dataclass(frozen=True)
class GolubKahan(Krylov):
    """The ends of the spectrum of R^T R by products with R and R^T, at the accuracy of R's singular values.

    Runs on the smaller side of R and starts in its range, so that null vectors of R^T R are not met; full
    reorthogonalization on both sides; bases that outgrow `basis_size` are restarted with the singular triplets
    nearest to the wanted ends. Stops when every wanted value meets the tolerance, when the range is exhausted, or at
    the budget. Residual norms of the triplets are
    recomputed with fresh products. A block of p start vectors sees a value up to p times; bases with room for the
    whole space see all. The small end converges slowly, and more slowly with a short basis (harmonic Ritz vectors in
    place of Ritz vectors were tried: no faster): until it does, the status says so and kappa is a lower bound.

    Cost: at most `max_matvecs` pairs of products with R and R^T, one for the start, and one for the residual of each
    value returned; memory `basis_size * (d + m)` numbers. Under `jax.jit` convergence is tested at restarts only.

    Args:
        max_matvecs: Budget of pairs of products in the recurrence.
        rtol: Wanted: residual <= rtol sigma (never below 20 eps sigma_max, which rounding leaves).
        which: Which end: `"both"`, `"largest"` or `"smallest"`.
        k: How many values at each end, at least; as many as eigenvectors are asked for.
        basis_size: Pairs of vectors in memory; None takes 3 k + 13 for the largest end (or 16 blocks), else what fits
            in 64 MiB, at least 32. Bases as large as the smaller side give the whole spectrum.
        block_size: Start vectors p. One needs the fewest products where the wanted values are apart; more find
            multiple and clustered values.

    Source: J. Baglama and L. Reichel, SIAM J. Sci. Comput. 27 (2005) 19.
    """

    def compute(
        self, operator: Any, key: Key, vectors: int, start: Array | None, show: Progress, xp: ModuleType
    ) -> Spectrum:
        """The method itself."""
        factor = operator.factor
        if factor is None:
            raise ValueError(
                f"`GolubKahan` needs a factor R with H = R^T R, and {operator.label or 'the operator'} has none: use "
                "`Lanczos(...)` or `Dense(...)`."
            )
        # On the smaller side: started on the wide one it finds the null space instead of the smallest value.
        wide = factor.out_size < factor.in_size
        narrow = factor.T.prepare() if wide else factor.prepare()
        batch, dtype = narrow.batch, working_dtype(narrow.dtype)
        s, d, m = batch or 1, narrow.in_size, narrow.out_size
        plan = self.plan(d, s * (d + m), narrow.dtype, vectors)

        def forward(block: Any) -> Any:
            return products(narrow.mv, block, batch, narrow.dtype, xp)

        def backward(block: Any) -> Any:
            return products(narrow.rmv, block, batch, narrow.dtype, xp)

        block = _start(start, key, wide, self.which != "largest", (s, plan.block, m, d), backward, dtype, xp)
        state = begin(block, m, plan, key, xp)
        first = state.current

        def step(state: State) -> State:
            state, left = left_half(state, forward(state.current), plan, xp)
            return right_half(state, backward(left), plan, xp)

        def restart(state: State) -> State:
            return _restart(state, plan, xp)

        if xp is np:
            tell = lambda steps: show(steps * plan.block, plan.steps * plan.block, operator.label)
            settled = lambda state: _examine(state, plan, np)[0]
            state, interrupted = drive(step, restart, settled, state, plan, tell)
        else:
            interrupted = False
            state = run_compiled(step, restart, state, plan)
        _, left, right, count = _ritz(state, plan, xp)
        chosen = plan.chosen(count, right.shape[1], xp)
        u = unit_rows(combine(take_weights(left, chosen, xp), state.left, xp), xp)
        v = unit_rows(combine(take_weights(right, chosen, xp), state.right, xp), xp)
        moved = forward(v)
        sigma = xp.abs(xp.sum(u * moved, axis=2))
        errors = (moved - sigma[:, :, None] * u, backward(u) - sigma[:, :, None] * v)
        rho = xp.hypot(*(lengths(error, xp) for error in errors))
        repeated = repeats(lambda block: backward(forward(block)), state, first, plan, xp)
        found = judge(sigma, rho, chosen.real, state, Status.NOT_ADJOINT, repeated, 2 * ROUNDING, plan, xp)
        largest = largest_vectors(u if wide else v, sigma, found.real, vectors, xp)
        sigma, real, rho = sort_real_first(sigma, found.real, rho, xp=xp)
        missing = factor.in_size - d if right.shape[1] >= d else 0
        made = xp.asarray((state.made + 1) * plan.block + v.shape[1], np.int32)
        norm = xp.fmax(state.scale, xp.max(xp.where(real, sigma, 0), axis=1))
        parts = (*_with_null_space(sigma, rho, real, missing, xp), largest, found.status, found.complete, norm)
        sigma, multiplicities, rho, largest, status, complete, norm = unbatched_all(parts, batch, dtype)
        spectrum = Spectrum(
            eigenvalues=sigma**2,
            multiplicities=multiplicities,
            residual_norms=(2 * sigma + rho) * rho,
            vectors=largest,
            singular_values=sigma,
            singular_residual_norms=rho,
            status=status,
            complete=complete,
            matvecs=jnp.asarray(made),
            size=factor.in_size,
            dtype=narrow.dtype,
            method=str(self),
            missing=jnp.where(complete, 0, jnp.inf).astype(sigma.dtype),
            krylov_steps=jnp.minimum(jnp.asarray(state.made, np.int32), plan.size // plan.block),
            start_size=m if start is None else 0,
            ends=self.which,
            norm=norm,
        )
        if interrupted:
            raise SpectrumInterrupt(spectrum)
        return spectrum


def _start(
    start: Any,
    key: Key,
    wide: bool,
    mix: bool,
    shape: tuple[int, int, int, int],
    backward: Callable[[Any], Any],
    dtype: Any,
    xp: ModuleType,
) -> Any:
    """The first block, in the range of A^T; `start` holds vectors of the side of R that it multiplies."""
    s, p, m, d = shape
    if start is None or mix:
        random = backward(start_block(None, key, (s, p, m), dtype, xp))
    if start is None:
        block = random
    else:
        block = start_block(start, key, (s, p, m if wide else d), dtype, xp)
        block = backward(block) if wide else block
        block = mixed(block, random, xp) if mix else block
    # A = 0 has no range: any vector shows that.
    nothing = ~xp.any(block, axis=(1, 2))[:, None, None]
    return xp.where(nothing, start_block(None, key, (s, p, d), dtype, xp), block)


def _with_null_space(sigma, rho, real, missing: int, xp: ModuleType) -> tuple[Any, Any, Any]:
    """Values, multiplicities, errors; with one more value 0 of the multiplicity d - m that a wide R makes certain."""
    multiplicities = real.astype(np.int32)
    if not missing:
        return sigma, multiplicities, rho
    zero = xp.zeros_like(sigma[:, :1])
    count = xp.full(zero.shape, missing, np.int32)
    parts = ((zero, sigma), (count, multiplicities), (zero, rho))
    sigma, multiplicities, rho = (xp.concatenate(part, axis=1) for part in parts)
    return sigma, multiplicities, rho


def left_half(state: State, moved: Any, plan: Plan, xp: ModuleType) -> tuple[State, Any]:
    """The first half of a step, given `moved` = A times the current block; also the new left vectors."""
    row, small = state.row, state.matrix.dtype
    scale, finite, _ = observe(state, moved, xp)
    basis, nearest = in_use(state.left, row, xp), nearest_rows(state, 1, 0, plan, xp)
    components, unit, upper = orthonormalize(basis, nearest, moved, BREAKDOWN * plan.eps * scale, xp)
    components = pad_rows(components, plan.size, xp).astype(small)
    skew = foretold(state.skew, scale, components, state.coupling, state.live[:, None, :], xp)
    # The components along all of U, so that the columns that follow a restart need no formula of their own.
    components = put_rows(components, row, upper.astype(small), xp)
    # A vector with A v = 0 is the answer where the space is seen whole, or for A = 0, and any left vector will do; else
    # it is rounding.
    live = alive(upper)
    answer = state.live & ~live & (plan.whole | (state.made == 0))
    state, unit, live = fill_up(state, basis, unit, live, answer, plan, xp)
    state = dataclasses.replace(
        state,
        right=put_rows(state.right, row, state.current, xp),
        left=put_rows(state.left, row, unit, xp),
        matrix=put_columns(state.matrix, row, components, xp),
        filled=put_rows(state.filled, row, state.live & live, xp),
        scale=scale,
        skew=skew,
        finite=finite,
    )
    return state, unit


def right_half(state: State, moved: Any, plan: Plan, xp: ModuleType) -> State:
    """The second half of a step, given `moved` = A^T times the last left vectors."""
    row, p, small = state.row, plan.block, state.matrix.dtype
    scale, finite, norms = observe(state, moved, xp)
    basis, nearest = in_use(state.right, row + p, xp), nearest_rows(state, 0, 1, plan, xp)
    components, unit, upper = orthonormalize(basis, nearest, moved, BREAKDOWN * plan.eps * scale, xp)
    expected = xp.swapaxes(take_rows(state.matrix, row, p, xp), 1, 2)
    components = pad_rows(components, plan.size, xp).astype(small)
    state = dataclasses.replace(
        state,
        coupling=put_rows(xp.zeros_like(state.coupling), row, xp.swapaxes(upper, 1, 2).astype(small), xp),
        row=row + p,
        made=state.made + 1,
        scale=scale,
        skew=foretold(state.skew, scale, components, expected, (norms > 0)[:, None, :], xp),
        finite=finite,
        current=unit,
        live=alive(upper),
    )
    return revive(state, basis, plan, xp)


def _restart(state: State, plan: Plan, xp: ModuleType) -> State:
    """The kept triplets become the bases."""
    settled, (sigma, left, right, count) = _examine(state, plan, xp)
    chosen = plan.kept(count, xp)
    values = xp.where(chosen.real, xp.take_along_axis(sigma, chosen.places, 1), 0)
    left, right = take_weights(left, chosen, xp), take_weights(right, chosen, xp)
    return retire(compress(state, right, left, values, chosen.real, plan, xp), settled, xp)


def _examine(state: State, plan: Plan, xp: ModuleType) -> tuple[Any, tuple[Any, Any, Any, Any]]:
    """Which problems have every wanted value, and the decomposition that tells."""
    sigma, left, right, count = _ritz(state, plan, xp)
    errors = residual_norms(state, left, xp)
    settled = finished(state, plan.settled(sigma, errors, count, state.scale, ROUNDING, xp), plan)
    return settled, (sigma, left, right, count)


def _ritz(state: State, plan: Plan, xp: ModuleType) -> tuple[Any, Any, Any, Any]:
    """Singular values ascending (s, K), left and right weights (s, K, K), how many are real; empty slots last.

    A start in the range of A^T meets null vectors only by rounding, which grows as the range is exhausted: values that
    the rank rule counts as zero are no news then, and are dropped, unless the space is whole.
    """
    rows = state.row if xp is np else plan.size
    matrix, filled = state.matrix[:, :rows, :rows], state.filled[:, :rows]
    left, sigma, right = xp.linalg.svd(shifted(matrix, filled, xp))
    left, sigma, right = left[:, :, ::-1], sigma[:, ::-1], xp.swapaxes(right, 1, 2)[:, :, ::-1]
    count = xp.sum(filled, axis=1, dtype=np.int32, keepdims=True)
    real = xp.arange(rows, dtype=np.int32)[None, :] < count
    top = xp.max(xp.where(real, sigma, 0), axis=1, keepdims=True)
    real = real & ((sigma >= plan.cutoff * top) | (count >= plan.order))
    order = xp.argsort(xp.where(real, sigma, xp.inf), axis=1)
    left, right = (xp.take_along_axis(part, order[:, None, :], 2) for part in (left, right))
    return xp.take_along_axis(sigma, order, 1), left, right, xp.sum(real, axis=1, dtype=np.int32)
