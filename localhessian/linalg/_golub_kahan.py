"""Thick-restart Golub-Kahan bidiagonalization of a factor: the small end without squaring, residuals recomputed."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    probe_adjoint,
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

BREAKDOWN = 30
"""A next basis vector shorter than BREAKDOWN * eps * ||A|| is rounding; below the rank rule's 100 eps."""
ROUNDING = 10
"""Residuals of ROUNDING * eps * ||A|| are what rounding leaves."""
RANK = 100
"""The rank rule: a singular value below RANK * eps * sigma_max counts as zero."""


@dataclasses.dataclass(frozen=True)
class GolubKahan(Krylov):
    """The ends of the spectrum of R^T R by products with R and R^T, at the accuracy of R's singular values.

    Runs on the smaller side of R and starts in its range, so that null vectors of R^T R are not met; full
    reorthogonalization in two passes on both sides; bases that outgrow `basis_size` are restarted with the singular
    triplets nearest to the wanted ends. Stops when every wanted value meets the tolerance, at a breakdown or at the
    budget. Residual norms of the triplets are recomputed with fresh products. Multiplicities are not seen. The small
    end converges slowly, and more slowly yet through restarts: until it does, the status says so and kappa is a lower
    bound.

    Cost: at most `max_matvecs` pairs of products with R and R^T, one for the probe, and one for the residual of each
    value returned; memory `basis_size * (d + m)` numbers. Under `jax.jit` convergence is tested at restarts
    only.

    Args:
        max_matvecs: Budget of pairs of products in the recurrence.
        rtol: Wanted: residual <= rtol sigma (never below 10 eps sigma_max, which rounding leaves).
        which: Which end: `"both"`, `"largest"` or `"smallest"`.
        k: How many values at each end, at least; as many as eigenvectors are asked for.
        basis_size: Pairs of vectors in memory; None takes what fits in 64 MiB, at least 32. Bases as large as the
            smaller side give the whole spectrum.

    Source: J. Baglama and L. Reichel, SIAM J. Sci. Comput. 27 (2005) 19.
    """

    def run(self, operator: LinearMap | SymmetricOperator, key: Key, vectors: int) -> Spectrum:
        """Compute; right singular vectors of the `vectors` largest values are returned."""
        factor = operator if isinstance(operator, LinearMap) else operator.factor
        if factor is None:
            raise ValueError(
                f"`GolubKahan` needs a factor R with H = R^T R, and {operator.label or 'the operator'} has none: use "
                "`Lanczos(...)` or `Dense(...)`."
            )
        # On the smaller side: started on the wide one it finds the null space instead of the smallest value.
        narrow = factor.T.prepare() if factor.out_size < factor.in_size else factor.prepare()
        s, dtype = narrow.batch or 1, narrow.dtype
        plan = self.plan(narrow.in_size, s * (narrow.in_size + narrow.out_size), dtype, vectors)
        v, refused = _start(narrow, key, (s, narrow.out_size))
        # Numbers now? The operator itself may hide traced values in a closure.
        concrete = is_concrete(operator, key, refused)
        state, row = _State.start(v, narrow.out_size, plan, concrete), 1 if concrete else plan.size
        if not (concrete and np.all(np.asarray(refused) != 0)):
            state, row = self._iterate(narrow, state, plan, concrete)
        return self._finish(factor, narrow, state, row, refused, plan, concrete, vectors)

    def _iterate(self, narrow: LinearMap, state: "_State", plan: Plan, concrete: bool) -> tuple["_State", int]:
        batch = narrow.batch
        forward, backward = rows(narrow.forward, batch), rows(narrow.backward, batch)
        if concrete:
            return run_on_host(
                lambda state, row: _step_on_host(narrow, state, row, plan),
                lambda state: _restart(state, plan, np),
                lambda state, row: bool(np.all(_examine(host(state.without_vectors()), row, plan, np)[0])),
                state,
                plan,
            )

        def step(state):
            state = _left(state, forward(state.current))
            return _right(state, backward(state.current_left))

        restart = partial(_restart, plan=plan, xp=jnp)
        state = run_compiled(step, restart, state, plan, lambda: backward(forward(state.current)))
        return state, plan.size

    def _finish(self, factor, narrow, state: "_State", row, refused, plan, concrete, vectors) -> Spectrum:
        xp: Any = np if concrete else jnp
        small = state.without_vectors()
        _, left, right, count = _ritz(host(small) if concrete else small, row, plan, xp)
        chosen = plan.chosen(count, row, xp)
        u, v = (
            ritz_vectors(basis, jnp.asarray(take_weights(weights, chosen, len(basis), xp), basis.dtype))
            for basis, weights in ((state.left, left), (state.right, right))
        )
        forward = apply_each(narrow.forward, v, narrow.batch, concrete)
        backward = apply_each(narrow.backward, u, narrow.batch, concrete)
        wide = narrow.in_size != factor.in_size
        missing = factor.in_size - plan.order if row == plan.order else 0
        products = (u, v, forward, backward)
        parts = _judge(products, jnp.asarray(chosen.real), small, refused, plan, wide, missing, vectors)
        sigma, multiplicities, rho, largest, status, complete, made = unbatched_all(parts, factor.batch)
        return Spectrum(
            eigenvalues=sigma**2,
            multiplicities=multiplicities,
            residual_norms=(2 * sigma + rho) * rho,
            vectors=largest,
            singular_values=sigma,
            singular_residual_norms=rho,
            status=status,
            complete=complete,
            matvecs=made + (1 + len(v)),
            size=factor.in_size,
            dtype=factor.dtype,
            method=str(self),
            ends=self.which,
        )


@jax.jit(static_argnums=(4, 5, 6, 7))
def _judge(products, real, state: "_State", refused, plan: Plan, wide: bool, missing: int, vectors: int):
    """Values u^T A v, sqrt(||A v - sigma u||^2 + ||A^T u - sigma v||^2) recomputed, and what all of it tells."""
    u, v, forward, backward = products
    real = real & (refused == 0)[:, None]
    sigma = jnp.abs(jnp.sum(u * forward, axis=-1))
    forward, backward = forward - sigma[:, :, None] * u, backward - sigma[:, :, None] * v
    rho = jnp.hypot(jnp.linalg.norm(forward, axis=-1), jnp.linalg.norm(backward, axis=-1)).T
    allowed = plan.tolerance(sigma.T, state.scale, 2 * ROUNDING, jnp)
    whole = jnp.sum(state.filled, axis=1) == plan.order
    status = ending(rho, allowed, real, ~state.alive & ~state.settled, whole, refused)
    largest = largest_vectors(u if wide else v, real, vectors)
    sigma, real, rho = sort_real_first(sigma.T, real, rho)
    complete = whole & (status != int(Status.NON_FINITE)) & (refused == 0)
    return *_with_null_space(sigma, rho, real, missing), largest, status, complete, state.made


def _start(narrow: LinearMap, key: Key, shape: tuple[int, int]) -> tuple[Array, Array]:
    """A unit vector in the range of A^T, and what the pair of products that it took tells."""
    u = random_unit(key, shape, narrow.dtype)
    backward = apply(narrow.backward, u, narrow.batch)
    norm, v = normalize(backward, jnp.zeros(shape[0], narrow.dtype))
    refused = probe_adjoint(u, backward, v, apply(narrow.forward, v, narrow.batch))
    # A = 0 has no range: any vector shows that.
    return jnp.where(norm[:, None] > 0, v, random_unit(key, (shape[0], narrow.in_size), narrow.dtype)), refused


def _with_null_space(sigma, rho, real, missing: int) -> tuple[Array, Array, Array]:
    """Values, multiplicities, errors; with one more value 0 of the multiplicity d - m that a wide R makes certain."""
    multiplicities = real.astype(jnp.int32)
    if not missing:
        return sigma, multiplicities, rho
    zero = jnp.zeros_like(sigma[:, :1])
    count = jnp.full(zero.shape, missing, jnp.int32)
    parts = ((zero, sigma), (count, multiplicities), (zero, rho))
    sigma, multiplicities, rho = (jnp.concatenate(part, axis=1) for part in parts)
    return sigma, multiplicities, rho


@pytree
class _State:
    """A partial decomposition A V = U B, A^T U = V B^T + beta v e^T of s problems; zero rows where there is none."""

    right: Array
    """V, `(rows, s, d)`; zero beyond the rows in use."""
    left: Array
    """U, `(rows, s, m)`."""
    current: Array
    """(s, d): the next vector of V; zero after a breakdown."""
    current_left: Array
    """(s, m): the last vector of U."""
    matrix: Array
    """B = U^T A V, (s, size, size)."""
    filled: Array
    """(s, size): which rows of B hold something."""
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
    """(s,): the largest ||A v|| seen, for the breakdown test."""

    @staticmethod
    @jax.jit(static_argnums=(1, 2, 3))
    def start(v: Array, long: int, plan: Plan, concrete: bool) -> "_State":
        s, dtype = len(v), v.dtype
        capacity = min(plan.size, BUCKET) if concrete else plan.size
        return _State(
            right=jnp.zeros((capacity, *v.shape), dtype),
            left=jnp.zeros((capacity, s, long), dtype),
            current=v,
            current_left=jnp.zeros((s, long), dtype),
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
        return dataclasses.replace(self, right=self.beta, left=self.beta, current=self.beta, current_left=self.beta)


def _left(state: _State, moved: Array) -> _State:
    """The first half of a step, given `moved` = A times the current vector."""
    scale = jnp.maximum(state.scale, jnp.linalg.norm(moved, axis=-1))
    rest, components = orthogonalize(state.left, moved)
    alpha, unit = normalize(rest, BREAKDOWN * jnp.finfo(rest.dtype).eps * scale)
    # The components along all of U, so that the column that follows a restart needs no formula of its own.
    components = jnp.pad(components, ((0, 0), (0, state.matrix.shape[1] - components.shape[1])))
    components = components.at[:, state.row].set(alpha)
    # A first vector with A v = 0 is the answer for A = 0; a later one is rounding.
    alive = state.alive & ((alpha > 0) | (state.made == 0))
    return dataclasses.replace(
        state,
        right=set_row(state.right, state.row, state.current),
        left=set_row(state.left, state.row, unit),
        current_left=unit,
        matrix=state.matrix.at[:, :, state.row].set(components),
        filled=state.filled.at[:, state.row].set(alive),
        alive=alive,
        scale=scale,
    )


def _right(state: _State, moved: Array) -> _State:
    """The second half of a step, given `moved` = A^T times the last left vector."""
    rest, _ = orthogonalize(state.right, moved)
    beta, unit = normalize(rest, BREAKDOWN * jnp.finfo(rest.dtype).eps * state.scale)
    beta = jnp.where(state.alive, beta, 0)
    return dataclasses.replace(
        state,
        current=jnp.where(beta[:, None] > 0, unit, 0),
        row=state.row + 1,
        made=state.made + 1,
        alive=state.alive & (beta > 0),
        beta=beta,
    )


_left_on_host = jax.jit(_left, donate_argnums=0)
_right_on_host = jax.jit(_right, donate_argnums=0)


def _step_on_host(narrow: LinearMap, state: _State, row: int, plan: Plan) -> _State:
    moved = apply(narrow.forward, state.current, narrow.batch)
    right, left = (grow(basis, row + 1, plan.size) for basis in (state.right, state.left))
    state = _left_on_host(dataclasses.replace(state, right=right, left=left), moved)
    return _right_on_host(state, apply(narrow.backward, state.current_left, narrow.batch))


def _restart(state: _State, plan: Plan, xp: Any) -> _State:
    """The kept triplets become the bases."""
    small = state.without_vectors()
    settled, (sigma, left, right, count) = _examine(host(small) if xp is np else small, plan.size, plan, xp)
    chosen = plan.kept(count, xp)
    values = xp.where(chosen.real, xp.take_along_axis(sigma, chosen.places, 1), 0)
    parts = (take_weights(left, chosen, plan.size, xp), take_weights(right, chosen, plan.size, xp), values)
    left, right, values = (jnp.asarray(part, state.right.dtype) for part in parts)
    return _compress(state, left, right, values, jnp.asarray(chosen.real), jnp.asarray(settled))


@jax.jit(donate_argnums=0)
def _compress(state: _State, left, right, values, real, settled) -> _State:
    count = real.shape[1]
    places = jnp.arange(count)
    return dataclasses.replace(
        state,
        right=jnp.zeros_like(state.right).at[:count].set(combine(state.right, right)),
        left=jnp.zeros_like(state.left).at[:count].set(combine(state.left, left)),
        matrix=jnp.zeros_like(state.matrix).at[:, places, places].set(values),
        filled=jnp.zeros_like(state.filled).at[:, :count].set(real),
        row=jnp.asarray(count, jnp.int32),
        # A settled problem of a batch, or of a fixed number of steps, makes no further steps.
        current=jnp.where(settled[:, None], 0, state.current),
        beta=jnp.where(settled, 0, state.beta),
        settled=state.settled | (state.alive & settled),
        alive=state.alive & ~settled,
    )


def _examine(state: _State, row: int, plan: Plan, xp: Any) -> tuple[Any, tuple[Any, Any, Any, Any]]:
    """Which problems have every wanted value, and the decomposition that tells."""
    sigma, left, right, count = _ritz(state, row, plan, xp)
    errors = state.beta[:, None] * xp.abs(left[:, row - 1])
    return plan.settled(sigma, errors, count, state.scale, ROUNDING, xp), (sigma, left, right, count)


def _ritz(state: _State, row: int, plan: Plan, xp: Any) -> tuple[Any, Any, Any, Any]:
    """Singular values ascending (s, row), left and right weights (s, row, row), how many are real; empty slots last.

    A start in the range of A^T meets null vectors only by rounding, which grows as the range is exhausted: values that
    the rank rule counts as zero are no news then, and are dropped, unless the space is whole.
    """
    matrix, filled = state.matrix[:, :row, :row], state.filled[:, :row]
    left, sigma, right = xp.linalg.svd(shifted(matrix, filled, xp))
    left, sigma, right = left[:, :, ::-1], sigma[:, ::-1], xp.swapaxes(right, 1, 2)[:, :, ::-1]
    count = xp.sum(filled, axis=1, dtype=np.int32, keepdims=True)
    real = xp.arange(row, dtype=np.int32)[None, :] < count
    top = xp.max(xp.where(real, sigma, 0), axis=1, keepdims=True)
    real = real & ((sigma >= RANK * plan.eps * top) | (count == plan.order))
    order = xp.argsort(xp.where(real, sigma, xp.inf), axis=1)
    left, right = (xp.take_along_axis(part, order[:, None, :], 2) for part in (left, right))
    return xp.take_along_axis(sigma, order, 1), left, right, xp.sum(real, axis=1, dtype=np.int32)
