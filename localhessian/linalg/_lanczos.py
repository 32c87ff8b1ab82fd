"""Lanczos for symmetric operators, with recomputed residuals."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._status import Status
from localhessian._tree import is_concrete, pytree
from localhessian._types import Array, Key
from localhessian.linalg._krylov import (
    combine,
    grow,
    host,
    normalize,
    orthogonalize,
    probe,
    random_unit,
    repeat,
    rows,
    sort_real_first,
    unbatched,
    wanted,
)
from localhessian.linalg._operators import LinearMap, SymmetricOperator
from localhessian.linalg._spectrum import Spectrum


@dataclasses.dataclass(frozen=True)
class Lanczos:
    """The ends of the spectrum of a symmetric operator, also indefinite, by its products alone.

    Full reorthogonalization in two passes; stops when every wanted value meets the tolerance, at a breakdown (the
    space is invariant) or at the budget. Residual norms are recomputed with fresh products of the Ritz vectors. One
    start vector sees each distinct eigenvalue once: multiplicities are not seen, and H = R^T R in float32 resolves
    the small end to eps lambda_max only (use `GolubKahan` where there is a factor).

    Cost: at most `max_matvecs` products, and `2 k` for the residuals; memory `max_matvecs * d` numbers.
    Under `jax.jit` all `min(max_matvecs, d)` steps are made.

    Args:
        max_matvecs: Budget of products in the recurrence.
        rtol: Wanted: residual <= rtol |lambda| (never below 30 eps lambda_max, which rounding leaves).
        which: Which end.
        k: How many values at each end.
    """

    max_matvecs: int = 200
    rtol: float = 1e-3
    which: Literal["both", "largest", "smallest"] = "both"
    k: int = 3

    def run(self, operator: LinearMap | SymmetricOperator, key: Key, vectors: int) -> Spectrum:
        """Compute; `vectors` of the largest values are returned."""
        if isinstance(operator, LinearMap):
            raise TypeError("`Lanczos` takes a symmetric operator: use `GolubKahan` for a linear map.")
        prepared = operator.prepare()
        lead, d, dtype = operator.batch or 1, operator.size, operator.dtype
        steps = min(self.max_matvecs, d)
        concrete = is_concrete(operator, key)
        start_key, probe_key = jax.random.split(key)
        refused, _ = _probe(prepared.product, probe_key, operator.batch, (lead, d), dtype)
        start = random_unit(start_key, (lead, d), dtype)
        state = _State.start(start, min(steps, 31) + 1 if concrete else steps + 1, steps)
        state = self._on_host(prepared, state, steps) if concrete else _compiled(prepared, state, steps)
        return self._finish(prepared, state, refused, concrete, vectors)

    def _on_host(self, prepared: SymmetricOperator, state: "_State", steps: int) -> "_State":
        for j in range(steps):
            state = dataclasses.replace(state, basis=grow(state.basis, j + 2))
            state = _step(prepared.product, state, prepared.batch)
            if (j + 1) % 8 == 0 and self._settled(host(dataclasses.replace(state, basis=state.alpha))):
                break
        return state

    def _settled(self, state: "_State") -> bool:
        theta, weights, count = _ritz(state, np)
        estimates = np.abs(state.last_beta[:, None] * np.take_along_axis(weights, count[:, None, None] - 1, 1)[:, 0])
        chosen = wanted(self.which, self.k, count, theta.shape[1], False, np)
        value, error = (np.take_along_axis(array, chosen.places, 1) for array in (theta, estimates))
        return bool(np.all(~chosen.real | (error <= self._tolerance(value, theta, count, state, np))))

    def _tolerance(self, value, theta, count, state: "_State", xp) -> Any:
        slots = xp.arange(theta.shape[1], dtype=count.dtype)[None, :] < count[:, None]
        largest = xp.max(xp.where(slots, xp.abs(theta), 0), axis=1, keepdims=True)
        return xp.maximum(self.rtol * xp.abs(value), 30 * state.eps * largest)

    def _finish(self, prepared, state: "_State", refused, concrete: bool, vectors: int) -> Spectrum:
        xp = np if concrete else jnp
        small = dataclasses.replace(state, basis=state.alpha)
        theta, weights, count = _ritz(host(small) if concrete else small, xp)
        d = prepared.size
        everything = bool(np.all(count == d)) if concrete else theta.shape[1] == d
        chosen = wanted(self.which, self.k, count, theta.shape[1], everything, xp)
        values = xp.take_along_axis(theta, chosen.places, 1)
        weights = xp.take_along_axis(weights, chosen.places[:, None, :], 2)
        ritz = combine(state.basis, weights)
        values, real = jnp.asarray(values, prepared.dtype), jnp.asarray(chosen.real)
        residual = _residual_norms(prepared.product, ritz, values, prepared.batch)
        allowed = self._tolerance(values, jnp.asarray(theta, values.dtype), jnp.asarray(count), state, jnp)
        met = jnp.all(~real | (residual <= allowed), axis=1)
        counted = jnp.asarray(count)
        status = jnp.where(counted < d, int(Status.INVARIANT_SUBSPACE), int(Status.CONVERGED))
        status = jnp.where(state.alive & (counted < d), int(Status.CONVERGED), status)
        status = jnp.where(met, status, int(Status.BUDGET_SPENT))
        status = jnp.where(refused == 0, status, refused)
        largest = jnp.moveaxis(ritz[len(ritz) - min(vectors, len(ritz)) :], 0, -1) if vectors else None
        values, real, residual = sort_real_first(values, real, residual)
        parts = (values, real.astype(jnp.int32), residual, largest, None, None, status, counted == d)
        parts = tuple(unbatched(part, prepared.batch) for part in parts)
        return Spectrum(*parts, state.made + 3 + len(ritz), d, prepared.dtype, str(self))


@pytree
class _State:
    """A partial Lanczos decomposition H Q = Q T + beta q e^T of s problems."""

    basis: Array
    alpha: Array
    """(steps, s); zero after a breakdown."""
    beta: Array
    made: Array
    """Steps made."""
    count: Array
    """(s,): basis vectors before the breakdown."""
    alive: Array
    scale: Array
    """(s,): a running estimate of ||H||, for the breakdown test."""
    last_beta: Array
    eps: Array

    @staticmethod
    def start(q: Array, capacity: int, steps: int) -> "_State":
        s, dtype = len(q), q.dtype
        return _State(
            basis=jnp.zeros((capacity, *q.shape), dtype).at[0].set(q),
            alpha=jnp.zeros((steps, s), dtype),
            beta=jnp.zeros((steps, s), dtype),
            made=jnp.zeros((), jnp.int32),
            count=jnp.zeros(s, jnp.int32),
            alive=jnp.ones(s, bool),
            scale=jnp.zeros(s, dtype),
            last_beta=jnp.zeros(s, dtype),
            eps=jnp.asarray(jnp.finfo(dtype).eps, dtype),
        )


def _advance(product: Partial, state: _State, batch: int | None) -> _State:
    j = state.made
    q = jax.lax.dynamic_index_in_dim(state.basis, j, keepdims=False)
    w = rows(product, batch)(q)
    alpha = jnp.sum(q * w, axis=-1)
    w = orthogonalize(state.basis, w)
    scale = jnp.maximum(state.scale, jnp.abs(alpha) + jnp.linalg.norm(w, axis=-1))
    beta, unit = normalize(w, 50 * state.eps * scale)
    return _State(
        basis=jax.lax.dynamic_update_index_in_dim(state.basis, unit, j + 1, 0),
        alpha=state.alpha.at[j].set(alpha),
        beta=state.beta.at[j].set(beta),
        made=j + 1,
        count=state.count + state.alive.astype(jnp.int32),
        alive=state.alive & (beta > 0),
        scale=scale,
        last_beta=jnp.where(state.alive, beta, state.last_beta),
        eps=state.eps,
    )


_step = jax.jit(_advance, static_argnums=2, donate_argnums=1)


def _compiled(prepared: SymmetricOperator, state: _State, steps: int) -> _State:
    start = state.basis[0]
    return repeat(
        lambda state: _advance(prepared.product, state, prepared.batch),
        state,
        steps,
        lambda: rows(prepared.product, prepared.batch)(start),
    )


def _ritz(state: _State, xp: Any) -> tuple[Any, Any, Any]:
    """Ritz values ascending (s, K), their weights (s, K, K), and how many are real; empty slots stand last."""
    steps = int(state.made) if xp is np else len(state.alpha)
    alpha, beta = (xp.where(xp.isfinite(part), part, 0)[:steps].T for part in (state.alpha, state.beta))
    empty = xp.arange(steps, dtype=state.count.dtype)[None, :] >= state.count[:, None]
    beyond = 4 * (xp.max(xp.abs(alpha), axis=1) + 2 * xp.max(beta, axis=1) + 1)
    diagonal = xp.where(empty, beyond[:, None], alpha)
    coupling = xp.where(empty[:, 1:], 0, beta[:, :-1])
    coupling = xp.concatenate([coupling, 0 * alpha[:, :1]], axis=1)
    upper = coupling[:, :, None] * xp.eye(steps, k=1, dtype=alpha.dtype)[None]
    matrix = diagonal[:, :, None] * xp.eye(steps, dtype=alpha.dtype)[None] + upper + xp.swapaxes(upper, 1, 2)
    theta, weights = xp.linalg.eigh(matrix)
    return theta, weights, state.count


@jax.jit(static_argnums=3)
def _residual_norms(product: Partial, ritz: Array, values: Array, batch: int | None) -> Array:
    """||H v - theta v|| / ||v|| by fresh products, (s, k)."""
    moved = jax.vmap(rows(product, batch))(ritz)
    residual = jnp.linalg.norm(moved - values.T[:, :, None] * ritz, axis=-1)
    return (residual / jnp.maximum(jnp.linalg.norm(ritz, axis=-1), 0.5)).T


_probe = jax.jit(
    lambda product, key, batch, shape, dtype: probe(rows(product, batch), key, shape, dtype), static_argnums=(2, 3, 4)
)
