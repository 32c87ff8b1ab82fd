"""Thick-restart Lanczos for symmetric operators, with recomputed residuals."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._status import Status
from localhessian._tree import is_concrete, pytree
from localhessian._types import Array, Key
from localhessian.linalg._krylov import (
    BUCKET,
    Krylov,
    Plan,
    apply,
    apply_each,
    combine,
    ending,
    grow,
    host,
    largest_vectors,
    normalize,
    orthogonalize,
    probe,
    random_unit,
    ritz_vectors,
    rows,
    run_compiled,
    run_on_host,
    set_row,
    shifted,
    sort_real_first,
    take_weights,
    unbatched_all,
)
from localhessian.linalg._operators import LinearMap, SymmetricOperator
from localhessian.linalg._spectrum import Spectrum

BREAKDOWN = 50
"""A next basis vector shorter than BREAKDOWN * eps * ||H|| is rounding: the space is invariant."""
ROUNDING = 30
"""Residuals of ROUNDING * eps * ||H|| are what rounding leaves."""


@dataclasses.dataclass(frozen=True)
class Lanczos(Krylov):
    """The ends of the spectrum of a symmetric operator, also indefinite, by its products alone.

    Full reorthogonalization in two passes; a basis that outgrows `basis_size` is restarted with the Ritz vectors
    nearest to the wanted ends. Stops when every wanted value meets the tolerance, at a breakdown (the space is
    invariant) or at the budget. Residual norms are recomputed with fresh products of the Ritz vectors. One start
    vector sees each distinct eigenvalue once: multiplicities are not seen, and H = R^T R in float32 resolves the small
    end to eps lambda_max only (use `GolubKahan` where there is a factor).

    Cost: at most `max_matvecs` products, three for the probe, and one for the residual of each value returned; memory
    `basis_size * d` numbers. Under `jax.jit` convergence is tested at restarts
    only.

    Args:
        max_matvecs: Budget of products in the recurrence.
        rtol: Wanted: residual <= rtol |lambda| (never below 30 eps lambda_max, which rounding leaves).
        which: Which end: `"both"`, `"largest"` or `"smallest"`.
        k: How many values at each end, at least; as many as eigenvectors are asked for.
        basis_size: Vectors in memory; None takes what fits in 64 MiB, at least 32. A basis as large as the operator
            gives the whole spectrum.

    Source: K. Wu and H. Simon, SIAM J. Matrix Anal. Appl. 22 (2000) 602.
    """

    def run(self, operator: LinearMap | SymmetricOperator, key: Key, vectors: int) -> Spectrum:
        """Compute; `vectors` of the largest values are returned."""
        if isinstance(operator, LinearMap):
            raise TypeError("`Lanczos` takes a symmetric operator: use `GolubKahan` for a linear map.")
        prepared = operator.prepare()
        lead, d, dtype = operator.batch or 1, operator.size, operator.dtype
        plan = self.plan(d, lead * d, dtype, vectors)
        start_key, probe_key = jax.random.split(key)
        refused = probe(lambda v: apply(prepared.product, v, prepared.batch), probe_key, (lead, d), dtype)
        # Numbers now? The operator itself may hide traced values in a closure.
        concrete = is_concrete(operator, key, refused)
        state = _State.start(random_unit(start_key, (lead, d), dtype), plan, concrete)
        row = 1 if concrete else plan.size
        if not (concrete and np.all(np.asarray(refused) != 0)):
            state, row = self._iterate(prepared, state, plan, concrete)
        return self._finish(prepared, state, row, refused, plan, concrete, vectors)

    def _iterate(
        self, prepared: SymmetricOperator, state: "_State", plan: Plan, concrete: bool
    ) -> tuple["_State", int]:
        product, batch = prepared.product, prepared.batch
        if concrete:
            return run_on_host(
                lambda state, row: _step_on_host(product, state, row, plan, batch),
                lambda state: _restart(state, plan, np),
                lambda state, row: bool(np.all(_examine(host(state.without_vectors()), row, plan, np)[0])),
                state,
                plan,
            )
        state = run_compiled(
            lambda state: _advance(state, rows(product, batch)(state.current)),
            lambda state: _restart(state, plan, jnp),
            state,
            plan,
            lambda: rows(product, batch)(state.current),
        )
        return state, plan.size

    def _finish(self, prepared, state: "_State", row, refused, plan: Plan, concrete: bool, vectors: int) -> Spectrum:
        xp: Any = np if concrete else jnp
        small = state.without_vectors()
        _, weights, count = _ritz(host(small) if concrete else small, row, xp)
        chosen = plan.chosen(count, row, xp)
        weights = jnp.asarray(take_weights(weights, chosen, len(state.basis), xp), prepared.dtype)
        ritz = ritz_vectors(state.basis, weights)
        moved = apply_each(prepared.product, ritz, prepared.batch, concrete)
        parts = _judge(ritz, moved, jnp.asarray(chosen.real), small, refused, plan, vectors)
        values, multiplicities, residual, largest, status, complete, made = unbatched_all(parts, prepared.batch)
        return Spectrum(
            eigenvalues=values,
            multiplicities=multiplicities,
            residual_norms=residual,
            vectors=largest,
            singular_values=None,
            singular_residual_norms=None,
            status=status,
            complete=complete,
            matvecs=made + (3 + len(ritz)),
            size=prepared.size,
            dtype=prepared.dtype,
            method=str(self),
            ends=self.which,
        )


@jax.jit(static_argnums=(5, 6))
def _judge(ritz, moved, real, state: "_State", refused, plan: Plan, vectors: int) -> tuple[Any, ...]:
    """Rayleigh quotients, recomputed residuals, and what they and the recurrence tell."""
    real = real & (refused == 0)[:, None]
    values = jnp.sum(ritz * moved, axis=-1).T
    residual = jnp.linalg.norm(moved - values.T[:, :, None] * ritz, axis=-1).T
    allowed = plan.tolerance(values, state.scale, 2 * ROUNDING, jnp)
    whole = jnp.sum(state.filled, axis=1) == plan.order
    status = ending(residual, allowed, real, ~state.alive & ~state.settled, whole, refused)
    largest = largest_vectors(ritz, real, vectors)
    values, real, residual = sort_real_first(values, real, residual)
    complete = whole & (status != int(Status.NON_FINITE)) & (refused == 0)
    return values, real.astype(jnp.int32), residual, largest, status, complete, state.made


@pytree
class _State:
    """A partial decomposition H Q = Q T + beta q e^T of s problems, T = Q^T H Q; zero rows where there is none."""

    basis: Array
    """Q, `(rows, s, d)`; zero beyond the rows in use."""
    current: Array
    """(s, d): the next basis vector; zero after a breakdown."""
    matrix: Array
    """T, (s, size, size)."""
    filled: Array
    """(s, size): which rows of T hold something."""
    row: Array
    """Rows in use."""
    made: Array
    """Steps made."""
    alive: Array
    """(s,): neither a breakdown yet, nor settled."""
    settled: Array
    """(s,): every wanted value was there at a restart, so that the problem was retired."""
    beta: Array
    """(s,): the length of the rest after the last step; 0 after a breakdown."""
    scale: Array
    """(s,): the largest ||H q|| seen, for the breakdown test."""

    @staticmethod
    @jax.jit(static_argnums=(1, 2))
    def start(q: Array, plan: Plan, concrete: bool) -> "_State":
        s, dtype = len(q), q.dtype
        return _State(
            basis=jnp.zeros((min(plan.size, BUCKET) if concrete else plan.size, *q.shape), dtype),
            current=q,
            matrix=jnp.zeros((s, plan.size, plan.size), dtype),
            filled=jnp.zeros((s, plan.size), bool),
            row=jnp.zeros((), jnp.int32),
            made=jnp.zeros((), jnp.int32),
            alive=jnp.ones(s, bool),
            settled=jnp.zeros(s, bool),
            beta=jnp.zeros(s, dtype),
            scale=jnp.zeros(s, dtype),
        )

    def without_vectors(self) -> "_State":
        """The small numbers only."""
        return dataclasses.replace(self, basis=self.beta, current=self.beta)


def _advance(state: _State, moved: Array) -> _State:
    """One step, given `moved` = H times the current vector."""
    basis = set_row(state.basis, state.row, state.current)
    scale = jnp.maximum(state.scale, jnp.linalg.norm(moved, axis=-1))
    rest, components = orthogonalize(basis, moved)
    beta, unit = normalize(rest, BREAKDOWN * jnp.finfo(rest.dtype).eps * scale)
    missing = state.matrix.shape[1] - components.shape[1]
    components = jnp.pad(components, ((0, 0), (0, missing)))
    return _State(
        basis=basis,
        current=unit,
        # The components along all of the basis, so that the row that follows a restart needs no formula of its own.
        matrix=state.matrix.at[:, state.row].set(components).at[:, :, state.row].set(components),
        filled=state.filled.at[:, state.row].set(state.alive),
        row=state.row + 1,
        made=state.made + 1,
        alive=state.alive & (beta > 0),
        settled=state.settled,
        beta=beta,
        scale=scale,
    )


_advance_on_host = jax.jit(_advance, donate_argnums=0)


def _step_on_host(product: Partial, state: _State, row: int, plan: Plan, batch: int | None) -> _State:
    moved = apply(product, state.current, batch)
    return _advance_on_host(dataclasses.replace(state, basis=grow(state.basis, row + 1, plan.size)), moved)


def _restart(state: _State, plan: Plan, xp: Any) -> _State:
    """The kept Ritz vectors become the basis."""
    small = state.without_vectors()
    settled, (theta, weights, count) = _examine(host(small) if xp is np else small, plan.size, plan, xp)
    chosen = plan.kept(count, xp)
    values = xp.where(chosen.real, xp.take_along_axis(theta, chosen.places, 1), 0)
    weights = take_weights(weights, chosen, plan.size, xp)
    weights, values = (jnp.asarray(part, state.basis.dtype) for part in (weights, values))
    return _compress(state, weights, values, jnp.asarray(chosen.real), jnp.asarray(settled))


@jax.jit(donate_argnums=0)
def _compress(state: _State, weights: Array, values: Array, real: Array, settled: Array) -> _State:
    kept = combine(state.basis, weights)
    places = jnp.arange(len(kept))
    return dataclasses.replace(
        state,
        basis=jnp.zeros_like(state.basis).at[: len(kept)].set(kept),
        matrix=jnp.zeros_like(state.matrix).at[:, places, places].set(values),
        filled=jnp.zeros_like(state.filled).at[:, : len(kept)].set(real),
        row=jnp.asarray(len(kept), jnp.int32),
        # A settled problem of a batch, or of a fixed number of steps, makes no further steps.
        current=jnp.where(settled[:, None], 0, state.current),
        beta=jnp.where(settled, 0, state.beta),
        settled=state.settled | (state.alive & settled),
        alive=state.alive & ~settled,
    )


def _examine(state: _State, row: int, plan: Plan, xp: Any) -> tuple[Any, tuple[Any, Any, Any]]:
    """Which problems have every wanted value, and the decomposition that tells."""
    theta, weights, count = _ritz(state, row, xp)
    errors = state.beta[:, None] * xp.abs(weights[:, row - 1])
    return plan.settled(theta, errors, count, state.scale, ROUNDING, xp), (theta, weights, count)


def _ritz(state: _State, row: int, xp: Any) -> tuple[Any, Any, Any]:
    """Ritz values ascending (s, row), their weights (s, row, row), and how many are real; empty slots stand last."""
    matrix, filled = state.matrix[:, :row, :row], state.filled[:, :row]
    theta, weights = xp.linalg.eigh(shifted(matrix, filled, xp))
    return theta, weights, xp.sum(filled, axis=1, dtype=np.int32)
