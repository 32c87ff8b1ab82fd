"""Jacobi matrices of random start vectors: the recurrences of Lanczos and Golub-Kahan without restarts.

Several starts run as one recurrence: the leading axis of its vectors is `g * s`, `g` starts for each of the `s`
operators of a batch.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from jax.tree_util import Partial

from localhessian._status import Status
from localhessian._types import Array, Float, Key
from localhessian.linalg.krylov import (
    BASIS_BYTES,
    HOST,
    TRACED,
    Arithmetic,
    Plan,
    State,
    advance,
    begin,
    jacobi_of,
    left_half,
    right_half,
)
from localhessian.linalg.operators import LinearMap, Operator, SymmetricOperator, call, eps_of, repeat, rows_of, skewed
from localhessian.linalg.spectra import Jacobi, working_dtype

GROUP = 8
"""Starts that run as one recurrence, at most: more vectors at once do not pay (8 break even on one core)."""
FEW = 64
"""Products that do not repay a program of their own for a group."""
PRODUCT_BYTES = 2**27
"""What a product with all vectors of a group may hold, its intermediate results counted as 8 times what goes in."""


Found = tuple[Jacobi, Any]
"""Of every start the coefficients `(p, s, N)`, and of every operator CONVERGED, or why the numbers mean nothing."""


def of_symmetric(operator: SymmetricOperator, key: Key, probes: int, steps: int, on: Arithmetic) -> Found:
    """`steps` steps of Lanczos from `probes` random starts for each operator."""
    prepared, s, d = operator.prepare(), operator.batch or 1, operator.size
    group = _group(operator, probes, steps, s * d, on)
    plan = _plan(d, steps, operator.dtype)
    multiplied = _multiplied(prepared, group, on)

    def step(state: State) -> State:
        return advance(state, multiplied(state.current), plan, on)

    def run(key: Key) -> Found:
        block = on.random(key, (group * s, 1, d), working_dtype(prepared.dtype))
        state = _drive(step, begin(block, None, plan, key, on), steps, on)
        return _found(state, steps, Status.NOT_SYMMETRIC, s, on)

    return _merge([run(key) for key in jax.random.split(key, probes // group)], on)


def of_factor(factor: LinearMap, key: Key, probes: int, steps: int, on: Arithmetic) -> Found:
    """`steps` steps of Golub-Kahan from `probes` random starts in the domain of each map A: N = 2 steps."""
    prepared, s, d, m = factor.prepare(), factor.batch or 1, factor.in_size, factor.out_size
    group = _group(factor, probes, steps, s * (d + m), on)
    plan = _plan(d, steps, factor.dtype)
    forward, backward = (_multiplied(part, group, on) for part in (prepared, prepared.T))

    def step(state: State) -> State:
        state, left = left_half(state, forward(state.current), plan, on)
        return right_half(state, backward(left), plan, on)

    def run(key: Key) -> Found:
        block = on.random(key, (group * s, 1, d), working_dtype(prepared.dtype))
        state = _drive(step, begin(block, m, plan, key, on), steps, on)
        return _found(state, steps, Status.NOT_ADJOINT, s, on)

    return _merge([run(key) for key in jax.random.split(key, probes // group)], on)


def _group(operator: Operator, probes: int, steps: int, numbers: int, on: Arithmetic) -> int:
    """How many starts run at once: the largest divisor of `probes` whose vectors, of `numbers` each, fit.

    Each group is a program part of its own where all is compiled whole, so only memory limits it there.
    """
    if on is HOST and (probes * steps <= FEW or not operator.in_programs):
        return 1
    bytes_ = numbers * operator.dtype.itemsize
    most = max(min(GROUP if on is HOST else probes, PRODUCT_BYTES // (8 * bytes_), BASIS_BYTES // (steps * bytes_)), 1)
    return max(group for group in range(1, most + 1) if probes % group == 0)


def _plan(order: int, steps: int, dtype: Any) -> Plan:
    """A run that is never restarted, nor filled up after a breakdown: the start's own invariant space is wanted."""
    eps = eps_of(dtype)
    return Plan("both", 1, order, block=1, size=steps, keep=0, steps=steps, whole=False, rtol=0.0, eps=eps)


def _together(prepared: Operator, v: Float[Array, "L d"]) -> Float[Array, "L m"]:
    """A product with the vectors of a group, `(g * s, d)`."""
    one = rows_of(prepared.product, prepared.batch)
    return jax.vmap(one)(v.reshape(-1, prepared.batch or 1, v.shape[1])).reshape(len(v), -1)


def _multiplied(prepared: Operator, group: int, on: Arithmetic) -> Callable[[Any], Any]:
    if group == 1:  # the program that the Krylov methods use
        return lambda block: on.products(prepared.mv, block, prepared.batch, prepared.dtype)
    together = Partial(_together, prepared)
    return lambda block: on.products(lambda v: call(together, v), block, len(block), prepared.dtype)


def _drive(step: Callable[[State], State], state: State, steps: int, on: Arithmetic) -> State:
    """All steps; on the host until every start has broken down."""
    if on is TRACED:
        return cast(State, repeat(step, state, steps))
    for _ in range(steps):
        state = step(state)
        if not np.any(state.live) or not np.any(state.finite):
            break
    return state


def _found(state: State, steps: int, wrong: Status, s: int, on: Arithmetic) -> tuple[Jacobi, Any]:
    """The coefficients `(g, s, N)` of a group, and of each start what the recurrence tells, `(g, s)`."""
    xp = on.xp
    known = jax.tree.map(lambda part: part.reshape(-1, s, part.shape[1]), jacobi_of(state, steps, on))
    status = xp.where(state.skew > skewed(eps_of(state.skew.dtype)), int(wrong), 0)
    status = xp.where(state.finite, status, int(Status.NON_FINITE)).astype(np.int32)
    return known, status.reshape(-1, s)


def _merge(groups: list[tuple[Jacobi, Any]], on: Arithmetic) -> Found:
    xp = on.xp
    known, status = jax.tree.map(lambda *parts: xp.concatenate(parts), *groups)
    # One of them is enough; a product that is not finite explains the others.
    is_broken = xp.any(status == int(Status.NON_FINITE), axis=0)
    return known, xp.where(is_broken, np.int32(Status.NON_FINITE), xp.max(status, axis=0))
