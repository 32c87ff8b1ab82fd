"""The recurrence that both Krylov methods run: blocks, orthogonalization, breakdown, restart, and its two drivers.

With bases V and U (Lanczos: U = V), projected matrix B and coupling C, after each step

    A V = U B,   A^T U = V B^T + Q C^T       (Lanczos: H V = V B + Q C^T, B symmetric)

where Q is the next block. C foretells the components of A Q along U, so that a product that is not symmetric (or
not adjoint) shows at once, and gives the residual norm ||C^T y|| of a Ritz vector with left weights y.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._tree import pytree
from localhessian._types import Array, Key
from localhessian.linalg.krylov._krylov import ROWS, Plan
from localhessian.linalg.krylov._vectors import combine, lengths, multiply, random_block, unit_rows
from localhessian.linalg.operators import in_loop, repeat

LOST = 0.5
"""A unit vector that one more pass of orthogonalization shortens below this was rounding."""


@pytree
class State:
    """A partial decomposition of s problems; zero rows where there is none."""

    right: Array
    """V, `(s, rows, d)`."""
    left: Array | None
    """U, `(s, rows, m)`; None where it is V."""
    current: Array
    """Q, `(s, p, d)`: the next block; zero vectors after a breakdown."""
    live: Array
    """(s, p): which vectors of the next block there are."""
    matrix: Array
    """B, (s, size, size)."""
    coupling: Array
    """C, (s, size, p)."""
    filled: Array
    """(s, size): which rows of V hold something."""
    row: Any
    """Rows in use."""
    made: Any
    """Steps made."""
    settled: Array
    """(s,): every wanted value was there, so that the problem was retired."""
    broken: Array
    """(s,): a breakdown was filled up by a random direction."""
    scale: Array
    """(s,): the norm of the largest product seen, for the breakdown test."""
    skew: Array
    """(s,): the largest component that C did not foretell, relative to the scale."""
    finite: Array
    """(s,): every product was finite."""
    key: Key

    def without_vectors(self) -> "State":
        """The small numbers only."""
        return dataclasses.replace(self, right=self.scale, left=None, current=self.scale)


def begin(block: Any, long: int | None, plan: Plan, key: Key, xp: Any) -> State:
    """Before the first step from a block `(s, p, d)`; U has vectors of length `long`."""
    s, p, d = block.shape
    dtype = block.dtype
    # Small matrices in float64 on the host, where that costs nothing.
    small = np.float64 if xp is np else dtype
    unit = unit_rows(block, xp)
    # What a row adds to those before it may be rounding: it is none then.
    for floor in (100 * plan.eps, LOST):
        unit, upper = gram_schmidt(unit, xp.full(s, floor, dtype), xp)
    state = State(
        right=xp.zeros((s, plan.size, d), dtype),
        left=None if long is None else xp.zeros((s, plan.size, long), dtype),
        current=unit,
        live=alive(upper),
        matrix=xp.zeros((s, plan.size, plan.size), small),
        coupling=xp.zeros((s, plan.size, p), small),
        filled=xp.zeros((s, plan.size), bool),
        row=0 if xp is np else xp.zeros((), np.int32),
        made=0 if xp is np else xp.zeros((), np.int32),
        settled=xp.zeros(s, bool),
        broken=xp.zeros(s, bool),
        scale=xp.zeros(s, dtype),
        skew=xp.zeros(s, dtype),
        finite=xp.isfinite(block).all(axis=(1, 2)),
        key=key,
    )
    return revive(state, state.right[:, :0], plan, xp)


def observe(state: State, moved: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Of products `(s, p, d)`: the scale and the finiteness with them, and the norms (s, p)."""
    norms = lengths(moved, xp)
    return xp.fmax(state.scale, norms.max(axis=1)), state.finite & xp.isfinite(norms).all(axis=1), norms


def foretold(skew: Any, scale: Any, components: Any, expected: Any, counted: Any, xp: Any) -> Any:
    """The skew (s,), with components (s, size, p) of a product along a basis and those `expected`, where `counted`."""
    wrong = xp.where(counted, xp.abs(components - expected), 0).max(axis=(1, 2))
    return xp.fmax(skew, (wrong / xp.where(scale > 0, scale, 1)).astype(skew.dtype))


def orthonormalize(basis: Any, nearest: Any, block: Any, floor: Any, xp: Any) -> tuple[Any, Any, Any]:
    """A block `(s, p, d)` without its components along a basis `(s, K, d)`, as orthonormal rows.

    Two passes, with a normalization between them; the first along the `nearest` rows (a slice) only, where all but
    rounding lies. A row that is not longer than its `floor`, (s,), is rounding: zero (breakdown).

    Returns:
        Components (s, K, p), orthonormal rows, and the upper triangle (s, p, p) with
        block = components^T basis + triangle^T rows.
    """
    near = basis[:, nearest]
    first = multiply(near, xp.swapaxes(block, 1, 2), xp)
    unit, upper = gram_schmidt(_less(block, first, near, xp), floor, xp)
    second = multiply(basis, xp.swapaxes(unit, 1, 2), xp)
    unit, again = gram_schmidt(_less(unit, second, basis, xp), LOST + 0 * floor, xp)
    components = add_rows(multiply(second, upper, xp), nearest, first, xp)
    return components, unit, multiply(again, upper, xp)


def gram_schmidt(block: Any, floor: Any, xp: Any) -> tuple[Any, Any]:
    """Orthonormal rows (s, p, d), and the upper triangle (s, p, p) with block = triangle^T rows; zero at breakdown."""
    rows: list[Any] = []
    s, p, _ = block.shape
    if p == 1:
        unit, norm = _unit(block[:, 0], floor, xp)
        return unit[:, None], norm[:, None, None]
    upper = xp.zeros((s, p, p), block.dtype)
    for j in range(p):
        w = block[:, j]
        for _ in range(2 if rows else 0):
            done = xp.stack(rows, axis=1)
            parts = multiply(done, w[:, :, None], xp)[:, :, 0]
            w = w - multiply(parts[:, None, :], done, xp)[:, 0]
            upper = add_rows(upper, slice(0, j), _column(parts, j, p, xp), xp)
        unit, norm = _unit(w, floor, xp)
        rows.append(unit)
        upper = add_rows(upper, slice(j, j + 1), _column(norm[:, None], j, p, xp), xp)
    return xp.stack(rows, axis=1), upper


def _unit(w: Any, floor: Any, xp: Any) -> tuple[Any, Any]:
    """Vectors (s, d) at unit length, and their norms, (s,); zero where that is not more than the floor."""
    norm = lengths(w, xp)
    there = norm > floor
    if xp is np and there.all():
        return w / norm[:, None], norm
    norm = xp.where(there, norm, 0).astype(w.dtype)
    return xp.where(there[:, None], w / xp.where(there, norm, 1)[:, None], 0), norm


def alive(upper: Any) -> Any:
    """(s, p): which rows the triangle of `gram_schmidt` or `orthonormalize` says there are."""
    return upper.diagonal(axis1=1, axis2=2) > 0


def _less(block: Any, components: Any, basis: Any, xp: Any) -> Any:
    """The block (s, p, d) without components^T basis."""
    part = multiply(xp.swapaxes(components, 1, 2), basis, xp)
    return np.subtract(block, part, out=part) if xp is np else block - part


def _column(values: Any, j: int, p: int, xp: Any) -> Any:
    """Values (s, r) as column j of (s, r, p)."""
    return values[:, :, None] * (xp.arange(p) == j).astype(values.dtype)[None, None, :]


def revive(state: State, basis: Any, plan: Plan, xp: Any) -> State:
    """Random directions in place of the broken rows of the next block, where the basis is to become the whole space.

    They have no coupling to what is there: the space was invariant, and another invariant one begins.
    """
    if not plan.whole:
        return state
    broken = ~state.live & ~state.settled[:, None]
    state, unit, live = fill_up(state, basis, state.current, state.live, broken, plan, xp)
    return state if unit is state.current else dataclasses.replace(state, current=unit, live=live)


def fill_up(state: State, basis: Any, unit: Any, live: Any, broken: Any, plan: Plan, xp: Any) -> tuple[State, Any, Any]:
    """Random directions, orthonormal to a basis, in the rows of a block (s, p, d) that are `broken`, (s, p).

    Returns:
        The state with a note of it, the block, and which of its rows there are; unchanged where none is broken.
    """
    broken = broken & state.finite[:, None]

    def fill() -> tuple[Any, Any, Any]:
        key = jax.random.fold_in(state.key, state.made)
        fresh = xp.where(broken[:, :, None], random_block(key, unit.shape, unit.dtype, xp), 0)
        # Of a space that is nearly full little is left of them: as little as two passes can make orthogonal.
        fresh, _ = gram_schmidt(fresh, xp.zeros(len(unit), unit.dtype), xp)
        for floor in (100 * plan.eps, LOST):
            # Along the rows of the block that are there, too, which may stand behind a broken one.
            for known in (basis, unit):
                fresh = _less(fresh, multiply(known, xp.swapaxes(fresh, 1, 2), xp), known, xp)
            fresh, upper = gram_schmidt(fresh, xp.full(len(unit), floor, unit.dtype), xp)
        # The rows that were there are unchanged, to the bit.
        kept = xp.where(broken[:, :, None], fresh, unit)
        return state.broken | xp.any(broken, axis=1), kept, live | (broken & alive(upper))

    if xp is np:
        if not broken.any():
            return state, unit, live
        seen, unit, live = fill()
    else:
        seen, unit, live = jax.lax.cond(jnp.any(broken), fill, lambda: (state.broken, unit, live))
    return dataclasses.replace(state, broken=seen), unit, live


def put_rows(basis: Any, row: Any, block: Any, xp: Any) -> Any:
    """The basis with the rows from `row` on replaced; on the host in place."""
    if xp is jnp:
        return jax.lax.dynamic_update_slice_in_dim(basis, block.astype(basis.dtype), row, 1)
    basis[:, row : row + block.shape[1]] = block
    return basis


def put_columns(matrix: Any, row: Any, columns: Any, xp: Any) -> Any:
    """The same for columns of a small matrix."""
    return xp.swapaxes(put_rows(xp.swapaxes(matrix, 1, 2), row, xp.swapaxes(columns, 1, 2), xp), 1, 2)


def add_rows(matrix: Any, place: slice, block: Any, xp: Any) -> Any:
    """The matrix with a block added to the rows of a slice; on the host in place."""
    if xp is jnp:
        return matrix.at[:, place].add(block)
    matrix[:, place] += block
    return matrix


def pad_rows(block: Any, count: int, xp: Any) -> Any:
    """Zero rows (axis 1) up to `count`."""
    padded = xp.zeros((len(block), count, block.shape[2]), block.dtype)
    return add_rows(padded, slice(0, block.shape[1]), block, xp)


def take_rows(matrix: Any, row: Any, count: int, xp: Any) -> Any:
    """The rows of a small matrix from `row` on."""
    return jax.lax.dynamic_slice_in_dim(matrix, row, count, 1) if xp is jnp else matrix[:, row : row + count]


def in_use(basis: Any, count: Any, xp: Any) -> Any:
    """The rows in use: on the host only those, in a compiled program all (the others are zero)."""
    return basis[:, :count] if xp is np else basis


def nearest_rows(state: State, before: int, after: int, plan: Plan, xp: Any) -> slice:
    """Rows `before` and `after` (in blocks) the current one, where a product's components lie; all after a restart."""
    everything = xp is not np or state.row <= plan.keep
    begin = 0 if everything else max(state.row - before * plan.block, 0)
    return slice(begin, None if everything else state.row + after * plan.block)


def residual_norms(state: State, left: Any, xp: Any) -> Any:
    """What the recurrence says of Ritz vectors with left weights (s, K, k): ||C^T y||, (s, k)."""
    coupling = state.coupling[:, : left.shape[1]]
    return lengths(multiply(xp.swapaxes(left, 1, 2), coupling, xp), xp)


def finished(state: State, settled: Any, plan: Plan) -> Any:
    """Which problems need no more steps; one that was filled up after a breakdown is seen whole."""
    return settled & ~(state.broken & plan.whole)


def compress(state: State, right: Any, left: Any, values: Any, real: Any, plan: Plan, xp: Any) -> State:
    """The Ritz vectors with these weights (s, K, k) become the basis, with their values (s, k); `real`: which."""
    count = real.shape[1]
    missing = plan.size - count
    matrix = xp.pad(values, ((0, 0), (0, missing)))[:, :, None] * xp.eye(plan.size, dtype=values.dtype)[None]
    ends = xp.swapaxes(right if left is None else left, 1, 2)
    coupling = multiply(ends, state.coupling[:, : ends.shape[2]], xp)
    return dataclasses.replace(
        state,
        right=replace_rows(state.right, combine(right, state.right, xp), xp),
        left=None if left is None else replace_rows(state.left, combine(left, state.left, xp), xp),
        matrix=matrix.astype(state.matrix.dtype),
        coupling=pad_rows(coupling, plan.size, xp).astype(state.coupling.dtype),
        filled=xp.pad(real, ((0, 0), (0, missing))),
        row=count if xp is np else jnp.asarray(count, np.int32),
    )


def replace_rows(basis: Any, block: Any, xp: Any) -> Any:
    """A basis that begins with the block; zero after it (on the host: not in use)."""
    if xp is jnp:
        return jnp.zeros_like(basis).at[:, : block.shape[1]].set(block)
    basis[:, : block.shape[1]] = block
    return basis


def retire(state: State, settled: Any, xp: Any) -> State:
    """A settled problem of a batch, or of a fixed number of steps, makes no further steps."""
    return dataclasses.replace(
        state,
        current=xp.where(settled[:, None, None], 0, state.current),
        live=state.live & ~settled[:, None],
        settled=state.settled | (xp.any(state.live, axis=1) & settled),
    )


def drive(
    step: Callable, restart: Callable, settled: Callable, state: State, plan: Plan, show: Callable[[int], None]
) -> tuple[State, bool]:
    """Steps on the host, until every wanted value is settled, the space is exhausted or the budget spent.

    Args:
        step: state -> state.
        restart: state -> state, of a full basis.
        settled: state -> (s,) booleans; asked at intervals.
        state: Before the first step.
        plan: Sizes.
        show: Told how many steps were made.

    Returns:
        The state, and whether it was interrupted.

    Raises:
        KeyboardInterrupt: It came before there was anything to keep, or in a restart, which rewrites the basis.
    """
    # Where both ends of a space that fits are asked for, the whole of it is worth more than a few products less.
    due, worth_seeing_whole = 1, plan.whole and (plan.which == "both" or plan.order <= ROWS)
    for made in range(1, plan.steps + 1):
        if state.row + plan.block > plan.size:
            state = restart(state)
        try:
            state = step(state)
            show(made)
            if not state.live.any() or not state.finite.any() or (made == 2 and (state.skew > plan.skewed).all()):
                break
            if not worth_seeing_whole and made >= due:
                if (settled(state) | ~state.live.any(axis=1)).all():
                    break
                # Asking costs the cube of the rows: a long basis is asked after every sixteenth of it.
                steps = state.row // plan.block
                due = made + max(1, min(steps // 8, max(4, steps // 16)))
        except KeyboardInterrupt:
            if not state.made:
                raise
            # What half of a step wrote lies beyond the rows in use.
            state.filled[:, state.row :] = False
            return state, True
    return state, False


def run_compiled(step: Callable, restart: Callable, state: State, plan: Plan) -> State:
    """All steps of the plan inside a compiled program, in whole cycles; loops end when every problem is done."""
    first, length = min(plan.steps, plan.size // plan.block), (plan.size - plan.keep) // plan.block
    state = repeat(step, state, first)
    cycles, rest = divmod(plan.steps - first, length) if plan.steps > first else (0, 0)
    if cycles:
        state = jax.lax.while_loop(
            lambda state: (state.made < first + cycles * length) & jnp.any(state.live),
            in_loop(lambda state: repeat(step, restart(state), length)),
            state,
        )
    return repeat(step, restart(state), rest) if rest else state
