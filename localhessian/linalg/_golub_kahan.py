"""Golub-Kahan bidiagonalization of a factor, with recomputed residuals: the small end without squaring."""

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
class GolubKahan:
    """The ends of the spectrum of R^T R by products with R and R^T, at the accuracy of R's singular values.

    Runs on the smaller side of R and starts in its range, so that null vectors of R^T R are not met; full
    reorthogonalization in two passes on both sides; stops when every wanted value meets the tolerance, at a breakdown
    or at the budget. Residual norms of the singular triplets are recomputed with fresh products. Multiplicities are
    not seen. The small end converges slowly: until it does, the status says so and kappa is a lower bound.

    Cost: at most `max_matvecs` pairs of products with R and R^T, and `2 k` for the residuals; memory
    `max_matvecs * (d + m)` numbers. Under `jax.jit` all `min(max_matvecs, d, m)` steps are made.

    Args:
        max_matvecs: Budget of pairs of products in the recurrence.
        rtol: Wanted: residual <= rtol sigma (never below 10 eps sigma_max, which rounding leaves).
        which: Which end.
        k: How many values at each end.
    """

    max_matvecs: int = 200
    rtol: float = 1e-3
    which: Literal["both", "largest", "smallest"] = "both"
    k: int = 3

    def run(self, operator: LinearMap | SymmetricOperator, key: Key, vectors: int) -> Spectrum:
        """Compute; right singular vectors of the `vectors` largest values are returned."""
        factor = operator if isinstance(operator, LinearMap) else operator.factor
        if factor is None:
            raise ValueError(
                f"`GolubKahan` needs a factor R with H = R^T R, and {operator.label or 'the operator'} has none: use "
                "`Lanczos(...)` or `Dense(...)`."
            )
        prepared = factor.prepare()
        # On the smaller side: started on the wide one it finds the null space instead of the smallest value.
        wide = prepared.out_size < prepared.in_size
        product, adjoint = (prepared.backward, prepared.forward) if wide else (prepared.forward, prepared.backward)
        small, long = sorted((prepared.in_size, prepared.out_size))
        steps, lead = min(self.max_matvecs, small), prepared.batch or 1
        concrete = is_concrete(operator, key)
        start = _start(adjoint, key, prepared.batch, (lead, long), prepared.dtype)
        capacity = min(steps, 31) + 1 if concrete else steps + 1
        state = _State.start(start, long, capacity, steps)
        if concrete:
            state = self._on_host(product, adjoint, state, steps, prepared.batch)
        else:
            state = _compiled(product, adjoint, state, steps, prepared.batch)
        return self._finish(prepared, product, adjoint, state, concrete, wide, vectors)

    def _on_host(self, product, adjoint, state: "_State", steps: int, batch: int | None) -> "_State":
        for j in range(steps):
            state = dataclasses.replace(state, right=grow(state.right, j + 2), left=grow(state.left, j + 1))
            state = _step(product, adjoint, state, batch)
            if (j + 1) % 8 == 0 and self._settled(host(_without_bases(state))):
                break
        return state

    def _settled(self, state: "_State") -> bool:
        sigma, left, _, count = _ritz(state, np)
        last = np.take_along_axis(left, count[:, None, None] - 1, 1)[:, 0]
        estimates = np.abs(state.last_beta[:, None] * last)
        chosen = wanted(self.which, self.k, count, sigma.shape[1], False, np)
        value, error = (np.take_along_axis(array, chosen.places, 1) for array in (sigma, estimates))
        return bool(np.all(~chosen.real | (error <= self._tolerance(value, sigma, count, state, np))))

    def _tolerance(self, value, sigma, count, state: "_State", xp) -> Any:
        slots = xp.arange(sigma.shape[1], dtype=count.dtype)[None, :] < count[:, None]
        largest = xp.max(xp.where(slots, sigma, 0), axis=1, keepdims=True)
        return xp.maximum(self.rtol * value, 10 * state.eps * largest)

    def _finish(self, factor, product, adjoint, state: "_State", concrete, wide, vectors) -> Spectrum:
        xp = np if concrete else jnp
        small_state = _without_bases(state)
        sigma, left, right, count = _ritz(host(small_state) if concrete else small_state, xp)
        order, d = min(factor.in_size, factor.out_size), factor.in_size
        everything = bool(np.all(count == order)) if concrete else sigma.shape[1] == order
        chosen = wanted(self.which, self.k, count, sigma.shape[1], everything, xp)
        sides = [
            combine(basis, xp.take_along_axis(weights, chosen.places[:, None, :], 2))
            for basis, weights in ((state.left, left), (state.right, right))
        ]
        values = jnp.asarray(xp.take_along_axis(sigma, chosen.places, 1), factor.dtype)
        real, counted = jnp.asarray(chosen.real), jnp.asarray(count)
        rho = _residual_norms(product, adjoint, *sides, values, factor.batch)
        allowed = self._tolerance(values, jnp.asarray(sigma, values.dtype), counted, state, jnp)
        met = jnp.all(~real | (rho <= allowed), axis=1)
        finite = jnp.all(~real | jnp.isfinite(rho), axis=1)
        whole = counted == order
        status = jnp.where(~state.alive & ~whole, int(Status.INVARIANT_SUBSPACE), int(Status.CONVERGED))
        status = jnp.where(met, status, int(Status.BUDGET_SPENT))
        status = jnp.where(finite, status, int(Status.NON_FINITE))
        ritz = sides[0] if wide else sides[1]
        largest = jnp.moveaxis(ritz[len(ritz) - min(vectors, len(ritz)) :], 0, -1) if vectors else None
        values, real, rho = sort_real_first(values, real, rho)
        values, rho, multiplicities = _with_null_space(values, rho, real, d - order, everything)
        parts = (values**2, multiplicities, (2 * values + rho) * rho, largest, values, rho, status, whole)
        parts = tuple(unbatched(part, factor.batch) for part in parts)
        return Spectrum(*parts, state.made + 1 + len(ritz), d, factor.dtype, str(self))


def _with_null_space(values, rho, real, missing: int, everything: bool):
    """One more value 0 of multiplicity d - m where a wide R makes it certain and the rest is complete."""
    multiplicities = real.astype(jnp.int32)
    if not (missing and everything):
        return values, rho, multiplicities
    zero = jnp.zeros_like(values[:, :1])
    count = jnp.full(zero.shape, missing, jnp.int32)
    return (
        jnp.concatenate([zero, values], axis=1),
        jnp.concatenate([zero, rho], axis=1),
        jnp.concatenate([count, multiplicities], axis=1),
    )


@pytree
class _State:
    """A partial bidiagonalization A V = U B, A^T U = V B^T + beta v e^T of s problems; B upper bidiagonal."""

    right: Array
    left: Array
    alpha: Array
    beta: Array
    made: Array
    count: Array
    alive: Array
    scale: Array
    last_beta: Array
    eps: Array

    @staticmethod
    def start(v: Array, long: int, capacity: int, steps: int) -> "_State":
        s, dtype = len(v), v.dtype
        return _State(
            right=jnp.zeros((capacity, *v.shape), dtype).at[0].set(v),
            left=jnp.zeros((capacity, s, long), dtype),
            alpha=jnp.zeros((steps, s), dtype),
            beta=jnp.zeros((steps, s), dtype),
            made=jnp.zeros((), jnp.int32),
            count=jnp.zeros(s, jnp.int32),
            alive=jnp.ones(s, bool),
            scale=jnp.zeros(s, dtype),
            last_beta=jnp.zeros(s, dtype),
            eps=jnp.asarray(jnp.finfo(dtype).eps, dtype),
        )


def _without_bases(state: _State) -> _State:
    return dataclasses.replace(state, right=state.alpha, left=state.alpha)


def _advance(product: Partial, adjoint: Partial, state: _State, batch: int | None) -> _State:
    j = state.made
    v = jax.lax.dynamic_index_in_dim(state.right, j, keepdims=False)
    w = orthogonalize(state.left, rows(product, batch)(v))
    scale = jnp.maximum(state.scale, jnp.linalg.norm(w, axis=-1))
    alpha, u = normalize(w, 30 * state.eps * scale)
    left = jax.lax.dynamic_update_index_in_dim(state.left, u, j, 0)
    w = orthogonalize(state.right, rows(adjoint, batch)(u))
    beta, unit = normalize(w, 30 * state.eps * scale)
    alive = state.alive & (alpha > 0)
    return _State(
        right=jax.lax.dynamic_update_index_in_dim(state.right, unit, j + 1, 0),
        left=left,
        alpha=state.alpha.at[j].set(alpha),
        beta=state.beta.at[j].set(beta),
        made=j + 1,
        count=state.count + alive.astype(jnp.int32),
        alive=alive & (beta > 0),
        scale=scale,
        last_beta=jnp.where(alive, beta, state.last_beta),
        eps=state.eps,
    )


_step = jax.jit(_advance, static_argnums=3, donate_argnums=2)


def _compiled(product, adjoint, state: _State, steps: int, batch: int | None) -> _State:
    start = state.right[0]
    return repeat(
        lambda state: _advance(product, adjoint, state, batch),
        state,
        steps,
        lambda: rows(adjoint, batch)(rows(product, batch)(start)),
    )


@jax.jit(static_argnums=(2, 3, 4))
def _start(adjoint: Partial, key: Key, batch: int | None, shape: tuple[int, int], dtype: Any) -> Array:
    v = rows(adjoint, batch)(random_unit(key, shape, dtype))
    return normalize(v, jnp.zeros(len(v), dtype))[1]


def _ritz(state: _State, xp: Any) -> tuple[Any, Any, Any, Any]:
    """Singular values ascending (s, K), left and right weights (s, K, K), how many are real; empty slots stand last."""
    steps = int(state.made) if xp is np else len(state.alpha)
    alpha, beta = (xp.where(xp.isfinite(part), part, 0)[:steps].T for part in (state.alpha, state.beta))
    empty = xp.arange(steps, dtype=state.count.dtype)[None, :] >= state.count[:, None]
    beyond = 4 * (xp.max(alpha, axis=1) + xp.max(beta, axis=1) + 1)
    diagonal = xp.where(empty, beyond[:, None], alpha)
    coupling = xp.concatenate([xp.where(empty[:, 1:], 0, beta[:, :-1]), 0 * alpha[:, :1]], axis=1)
    matrix = diagonal[:, :, None] * xp.eye(steps, dtype=alpha.dtype)[None]
    matrix = matrix + coupling[:, :, None] * xp.eye(steps, k=1, dtype=alpha.dtype)[None]
    left, sigma, right = xp.linalg.svd(matrix)
    return sigma[:, ::-1], left[:, :, ::-1], xp.swapaxes(right, 1, 2)[:, :, ::-1], state.count


@jax.jit(static_argnums=5)
def _residual_norms(product: Partial, adjoint: Partial, left: Array, right: Array, sigma: Array, batch: int | None):
    """sqrt(||A v - sigma u||^2 + ||A^T u - sigma v||^2) by fresh products, (s, k)."""
    forward = jax.vmap(rows(product, batch))(right) - sigma.T[:, :, None] * left
    backward = jax.vmap(rows(adjoint, batch))(left) - sigma.T[:, :, None] * right
    return jnp.hypot(jnp.linalg.norm(forward, axis=-1), jnp.linalg.norm(backward, axis=-1)).T
