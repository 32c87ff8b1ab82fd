"""The recurrence that both Krylov methods run: blocks, orthogonalization, breakdown, restart.

With bases V and U (Lanczos: U = V), projected matrix B and coupling C, after each step

    A V = U B,   A^T U = V B^T + Q C^T       (Lanczos: H V = V B + Q C^T, B symmetric)

where Q is the next block. C foretells the components of A Q along U, so that a product that is not symmetric (or
not adjoint) shows at once, and gives the residual norm ||C^T y|| of a Ritz vector with left weights y.
"""

import dataclasses
from typing import Any

import jax

from localhessian._tree import pytree
from localhessian._types import Bool, Float, Key
from localhessian.linalg.krylov._arithmetic import Arithmetic
from localhessian.linalg.krylov._plan import Plan
from localhessian.linalg.krylov._vectors import combine, unit_rows
from localhessian.linalg.spectra import Jacobi

LOST = 0.5
"""A unit vector that one more pass of orthogonalization shortens below this was rounding."""


@pytree
class State:
    """A partial decomposition of s problems; zero rows where there is none."""

    right: Float[Any, "s rows d"]
    """V, `(s, rows, d)`."""
    left: Float[Any, "s rows m"] | None
    """U, `(s, rows, m)`; None where it is V."""
    current: Float[Any, "s p d"]
    """Q, `(s, p, d)`: the next block; zero vectors after a breakdown."""
    live: Bool[Any, "s p"]
    """(s, p): which vectors of the next block there are."""
    matrix: Float[Any, "s rows rows"]
    """B, (s, size, size)."""
    coupling: Float[Any, "s rows p"]
    """C, (s, size, p)."""
    filled: Bool[Any, "s rows"]
    """(s, size): which rows of V hold something."""
    row: Any
    """Rows in use."""
    made: Any
    """Steps made."""
    settled: Bool[Any, " s"]
    """(s,): every wanted value was there, so that the problem was retired."""
    broken: Bool[Any, " s"]
    """(s,): a breakdown was filled up by a random direction."""
    scale: Float[Any, " s"]
    """(s,): the norm of the largest product seen, for the breakdown test."""
    skew: Float[Any, " s"]
    """(s,): the largest component that C did not foretell, relative to the scale."""
    finite: Bool[Any, " s"]
    """(s,): every product was finite."""
    key: Key


def begin(block: Any, long: int | None, plan: Plan, key: Key, on: Arithmetic) -> State:
    """Before the first step from a block `(s, p, d)`; U has vectors of length `long`."""
    xp = on.xp
    s, p, d = block.shape
    dtype = block.dtype
    unit = unit_rows(block, on)
    # What a row adds to those before it may be rounding: it is none then.
    for floor in (100 * plan.eps, LOST):
        unit, upper = gram_schmidt(unit, xp.full(s, floor, dtype), on)
    state = State(
        right=xp.zeros((s, plan.size, d), dtype),
        left=None if long is None else xp.zeros((s, plan.size, long), dtype),
        current=unit,
        live=alive(upper),
        matrix=xp.zeros((s, plan.size, plan.size), on.small(dtype)),
        coupling=xp.zeros((s, plan.size, p), on.small(dtype)),
        filled=xp.zeros((s, plan.size), bool),
        row=on.counter(0),
        made=on.counter(0),
        settled=xp.zeros(s, bool),
        broken=xp.zeros(s, bool),
        scale=xp.zeros(s, dtype),
        skew=xp.zeros(s, dtype),
        finite=xp.isfinite(block).all(axis=(1, 2)),
        key=key,
    )
    return revive(state, state.right[:, :0], plan, on)


def observe(state: State, moved: Any, on: Arithmetic) -> tuple[Any, Any, Any]:
    """Of products `(s, p, d)`: the scale and the finiteness with them, and the norms (s, p)."""
    xp = on.xp
    norms = on.lengths(moved)
    return xp.fmax(state.scale, norms.max(axis=1)), state.finite & xp.isfinite(norms).all(axis=1), norms


def foretold(skew: Any, scale: Any, components: Any, expected: Any, counted: Any, on: Arithmetic) -> Any:
    """The skew (s,), with components (s, size, p) of a product along a basis and those `expected`, where `counted`."""
    xp = on.xp
    wrong = xp.where(counted, xp.abs(components - expected), 0).max(axis=(1, 2))
    return xp.fmax(skew, (wrong / xp.where(scale > 0, scale, 1)).astype(skew.dtype))


def orthonormalize(basis: Any, nearest: Any, block: Any, floor: Any, on: Arithmetic) -> tuple[Any, Any, Any]:
    """A block `(s, p, d)` without its components along a basis `(s, K, d)`, as orthonormal rows.

    Two passes, with a normalization between them; the first along the `nearest` rows (a slice) only, where all but
    rounding lies. A row that is not longer than its `floor`, (s,), is rounding: zero (breakdown).

    Returns:
        Components (s, K, p), orthonormal rows, and the upper triangle (s, p, p) with
        block = components^T basis + triangle^T rows.
    """
    xp = on.xp
    near = basis[:, nearest]
    first = on.multiply(near, xp.swapaxes(block, 1, 2))
    unit, upper = gram_schmidt(_less(block, first, near, on), floor, on)
    second = on.multiply(basis, xp.swapaxes(unit, 1, 2))
    unit, again = gram_schmidt(_less(unit, second, basis, on), LOST + 0 * floor, on)
    components = on.add_rows(on.multiply(second, upper), nearest, first)
    return components, unit, on.multiply(again, upper)


def gram_schmidt(block: Any, floor: Any, on: Arithmetic) -> tuple[Any, Any]:
    """Orthonormal rows (s, p, d), and the upper triangle (s, p, p) with block = triangle^T rows; zero at breakdown."""
    xp = on.xp
    rows: list[Any] = []
    s, p, _ = block.shape
    if p == 1:
        unit, norm = _unit(block[:, 0], floor, on)
        return unit[:, None], norm[:, None, None]
    upper = xp.zeros((s, p, p), block.dtype)
    for j in range(p):
        w = block[:, j]
        for _ in range(2 if rows else 0):
            done = xp.stack(rows, axis=1)
            parts = on.multiply(done, w[:, :, None])[:, :, 0]
            w = w - on.multiply(parts[:, None, :], done)[:, 0]
            upper = on.add_rows(upper, slice(0, j), _column(parts, j, p, on))
        unit, norm = _unit(w, floor, on)
        rows.append(unit)
        upper = on.add_rows(upper, slice(j, j + 1), _column(norm[:, None], j, p, on))
    return xp.stack(rows, axis=1), upper


def _unit(w: Any, floor: Any, on: Arithmetic) -> tuple[Any, Any]:
    """Vectors (s, d) at unit length, and their norms, (s,); zero where that is not more than the floor."""
    xp = on.xp
    norm = on.lengths(w)
    there = norm > floor
    if on.surely(there):
        return w / norm[:, None], norm
    norm = xp.where(there, norm, 0).astype(w.dtype)
    return xp.where(there[:, None], w / xp.where(there, norm, 1)[:, None], 0), norm


def alive(upper: Any) -> Any:
    """(s, p): which rows the triangle of `gram_schmidt` or `orthonormalize` says there are."""
    return upper.diagonal(axis1=1, axis2=2) > 0


def _less(block: Any, components: Any, basis: Any, on: Arithmetic) -> Any:
    """The block (s, p, d) without components^T basis."""
    xp = on.xp
    return on.subtract(block, on.multiply(xp.swapaxes(components, 1, 2), basis))


def _column(values: Any, j: int, p: int, on: Arithmetic) -> Any:
    """Values (s, r) as column j of (s, r, p)."""
    xp = on.xp
    return values[:, :, None] * (xp.arange(p) == j).astype(values.dtype)[None, None, :]


def revive(state: State, basis: Any, plan: Plan, on: Arithmetic) -> State:
    """Random directions in place of the broken rows of the next block, where the basis is to become the whole space.

    They have no coupling to what is there: the space was invariant, and another invariant one begins.
    """
    if not plan.whole:
        return state
    broken = ~state.live & ~state.settled[:, None]
    state, unit, live = fill_up(state, basis, state.current, state.live, broken, plan, on)
    return dataclasses.replace(state, current=unit, live=live)


def fill_up(
    state: State, basis: Any, unit: Any, live: Any, broken: Any, plan: Plan, on: Arithmetic
) -> tuple[State, Any, Any]:
    """Random directions, orthonormal to a basis, in the rows of a block (s, p, d) that are `broken`, (s, p).

    Returns:
        The state with a note of it, the block, and which of its rows there are; unchanged where none is broken.
    """
    xp = on.xp
    broken = broken & state.finite[:, None]

    def fill() -> tuple[Any, Any, Any]:
        key = jax.random.fold_in(state.key, state.made)
        fresh = xp.where(broken[:, :, None], on.random(key, unit.shape, unit.dtype), 0)
        # Of a space that is nearly full little is left of them: as little as two passes can make orthogonal.
        fresh, _ = gram_schmidt(fresh, xp.zeros(len(unit), unit.dtype), on)
        for floor in (100 * plan.eps, LOST):
            # Along the rows of the block that are there, too, which may stand behind a broken one.
            for known in (basis, unit):
                fresh = _less(fresh, on.multiply(known, xp.swapaxes(fresh, 1, 2)), known, on)
            fresh, upper = gram_schmidt(fresh, xp.full(len(unit), floor, unit.dtype), on)
        # The rows that were there are unchanged, to the bit.
        kept = xp.where(broken[:, :, None], fresh, unit)
        return state.broken | xp.any(broken, axis=1), kept, live | (broken & alive(upper))

    seen, unit, live = on.if_any(broken, fill, (state.broken, unit, live))
    return dataclasses.replace(state, broken=seen), unit, live


def put_columns(matrix: Any, row: Any, columns: Any, on: Arithmetic) -> Any:
    """The same for columns of a small matrix."""
    xp = on.xp
    return xp.swapaxes(on.put_rows(xp.swapaxes(matrix, 1, 2), row, xp.swapaxes(columns, 1, 2)), 1, 2)


def pad_rows(block: Any, count: int, on: Arithmetic) -> Any:
    """Zero rows (axis 1) up to `count`."""
    xp = on.xp
    padded = xp.zeros((len(block), count, block.shape[2]), block.dtype)
    return on.add_rows(padded, slice(0, block.shape[1]), block)


def nearest_rows(state: State, before: int, after: int, plan: Plan, on: Arithmetic) -> slice:
    """Rows `before` and `after` (in blocks) the current one, where a product's components lie; all after a restart."""
    return on.near(state.row, before * plan.block, after * plan.block, plan.keep)


def residual_norms(state: State, left: Any, on: Arithmetic) -> Any:
    """What the recurrence says of Ritz vectors with left weights (s, K, k): ||C^T y||, (s, k)."""
    xp = on.xp
    coupling = state.coupling[:, : left.shape[1]]
    return on.lengths(on.multiply(xp.swapaxes(left, 1, 2), coupling))


def compress(state: State, right: Any, left: Any, values: Any, real: Any, plan: Plan, on: Arithmetic) -> State:
    """The Ritz vectors with these weights (s, K, k) become the basis, with their values (s, k); `real`: which."""
    xp = on.xp
    count = real.shape[1]
    missing = plan.size - count
    matrix = xp.pad(values, ((0, 0), (0, missing)))[:, :, None] * xp.eye(plan.size, dtype=values.dtype)[None]
    ends = xp.swapaxes(right if left is None else left, 1, 2)
    coupling = on.multiply(ends, state.coupling[:, : ends.shape[2]])
    return dataclasses.replace(
        state,
        right=on.replace_rows(state.right, combine(right, state.right, on)),
        left=None if left is None else on.replace_rows(state.left, combine(left, state.left, on)),
        matrix=matrix.astype(state.matrix.dtype),
        coupling=pad_rows(coupling, plan.size, on).astype(state.coupling.dtype),
        filled=xp.pad(real, ((0, 0), (0, missing))),
        row=on.counter(count),
    )


def jacobi_of(state: State, rows: int, on: Arithmetic) -> Jacobi:
    """The coefficients (s, N) of a run from single vectors that was not restarted, of its first `rows` steps."""
    xp, matrix = on.xp, state.matrix[:, :rows, :rows]
    last = xp.sum(state.coupling[:, :rows, 0], axis=1)[:, None]
    own, beside = (xp.diagonal(matrix, k, axis1=1, axis2=2) for k in (0, 1))
    if state.left is None:
        # Decoupled rows get a value from within the spectrum, so that extremes need no mask.
        own = xp.where(state.filled[:, :rows], own, own[:, :1])
        return Jacobi(own, xp.concatenate([xp.abs(beside), last], axis=1))
    beside = xp.concatenate([beside, last], axis=1)
    off = xp.abs(xp.stack([own, beside], axis=2).reshape(len(own), -1))
    return Jacobi(xp.zeros_like(off), off)


def retire(state: State, settled: Any, on: Arithmetic) -> State:
    """A settled problem of a batch, or of a fixed number of steps, makes no further steps."""
    xp = on.xp
    return dataclasses.replace(
        state,
        current=xp.where(settled[:, None, None], 0, state.current),
        live=state.live & ~settled[:, None],
        settled=state.settled | (xp.any(state.live, axis=1) & settled),
    )


def shifted(matrix: Any, filled: Any, on: Arithmetic) -> Any:
    """A projected matrix (s, K, K) whose empty rows and columns hold one value beyond all others on the diagonal."""
    if on.surely(filled) and on.surely(on.xp.isfinite(matrix)):
        return matrix
    xp = on.xp
    both = filled[:, :, None] & filled[:, None, :]
    matrix = xp.where(both & xp.isfinite(matrix), matrix, 0)
    norm = on.lengths(matrix.reshape(len(matrix), -1))
    beyond = xp.where(norm > 0, 2 * norm, 1)
    eye = xp.eye(matrix.shape[1], dtype=matrix.dtype)[None]
    return matrix + xp.where(filled, 0, beyond[:, None])[:, :, None] * eye
