"""What the Krylov methods share: settings, orthogonalization, the choice of wanted values, the drivers, the probes.

Vectors carry a leading axis `s` of independent problems here (s = 1 for a single one); a basis is row-major,
`(k, s, d)`, so that one pass of orthogonalization reads it once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._status import Status
from localhessian._tree import pytree
from localhessian._types import Array, Float, Int, Key

HIGHEST = jax.lax.Precision.HIGHEST
BUCKET = 32
"""Rows of a basis to begin with on the host; each doubling costs a small compiled program."""
BASIS_BYTES = 2**26
"""A basis beyond this is restarted: its orthogonalization would outweigh most products (heuristic)."""
CHECK_EVERY = 8
"""Steps between two tests of convergence, at least; a quarter of the basis where that is more."""


@dataclasses.dataclass(frozen=True)
class Krylov:
    """The settings that the Krylov methods have in common."""

    max_matvecs: int = 200
    rtol: float = 1e-3
    which: Literal["both", "largest", "smallest"] = "both"
    k: int = 3
    basis_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing.

        Raises:
            ValueError: with the setting and what it must be.
        """
        if self.which not in {"both", "largest", "smallest"}:
            raise ValueError(f"`which` must be 'both', 'largest' or 'smallest', got {self.which!r}.")
        for name, least in (("max_matvecs", 1), ("k", 1), ("basis_size", 4)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        if not 0 < self.rtol < 1:
            raise ValueError(f"`rtol` must lie between 0 and 1, got {self.rtol}.")

    def plan(self, order: int, row_numbers: int, dtype: Any, vectors: int) -> "Plan":
        """The sizes of a run on a space of dimension `order`, where one more step stores `row_numbers` numbers."""
        k = max(self.k, vectors)
        ends = 2 * k if self.which == "both" else k
        size = max(self.basis_size or max(BASIS_BYTES // (row_numbers * dtype.itemsize), BUCKET), ends + 4)
        size = min(order, self.max_matvecs, size)
        # Of a full basis the wanted values are kept, and half of the rest beside them (as in thick-restart Lanczos).
        keep = max(min(ends + (size - ends) // 2, size - 2), 0)
        # A basis as large as the space, or one that cannot be restarted, ends the run.
        steps = size if size == order or size - keep < 1 else self.max_matvecs
        return Plan(self.which, k, order, size, keep, steps, self.rtol, float(jnp.finfo(dtype).eps))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of a run."""

    which: str
    k: int
    order: int
    """The dimension of the space."""
    size: int
    """The largest basis."""
    keep: int
    """How many Ritz vectors survive a restart."""
    steps: int
    """The budget."""
    rtol: float
    eps: float
    """Of the arithmetic."""

    def tolerance(self, value: Any, scale: Any, floor: float, xp: Any) -> Any:
        """The residual norms (s, k) that are small enough: relative, or what rounding leaves of `scale`, (s,)."""
        return xp.maximum(self.rtol * xp.abs(value), floor * self.eps * scale[:, None])

    def settled(self, values: Any, errors: Any, count: Any, scale: Any, floor: float, xp: Any) -> Any:
        """Which problems (s,) have every wanted value, by the residuals that the recurrence estimates."""
        chosen = self.chosen(count, values.shape[1], xp)
        value, error = (xp.take_along_axis(array, chosen.places, 1) for array in (values, errors))
        return xp.all(~chosen.real | (error <= self.tolerance(value, scale, floor, xp)), axis=1)

    def chosen(self, count: Any, order: int, xp: Any) -> "Wanted":
        """Which of `order` ascending Ritz values are returned, `count` of which are real: all, of the whole space."""
        return wanted(self.which, self.k, count, order, order == self.order, xp)

    def kept(self, count: Any, xp: Any) -> "Wanted":
        """Which Ritz values of a full basis survive a restart."""
        if self.which != "both":
            return wanted(self.which, self.keep, count, self.size, False, xp)
        half = self.keep // 2
        low = wanted("smallest", half, count, self.size, False, xp)
        high = wanted("largest", self.keep - half, count, self.size, False, xp)
        places = xp.concatenate([low.places, high.places], axis=1)
        return Wanted(places, xp.concatenate([low.real, high.real & (high.places >= half)], axis=1))


def rows(product: Partial, batch: int | None) -> Callable[[Array], Array]:
    """The product on vectors with the leading axis s."""
    return product if batch is not None else lambda v: product(v[0])[None]


def apply(product: Partial, v: Float[Array, "s d"], batch: int | None) -> Float[Array, "s m"]:
    """One product with the leading axis s; compiled once for a function and its shapes."""
    return _apply(product, v, batch)


_apply = jax.jit(lambda product, v, batch: rows(product, batch)(v), static_argnums=2)


def apply_each(product: Partial, vectors: Float[Array, "k s d"], batch: int | None, concrete: bool) -> Array:
    """Products with several vectors: one after another on the host (no new program, no k-fold memory), else at once."""
    if concrete:
        return jnp.stack([apply(product, v, batch) for v in vectors])
    return jax.vmap(rows(product, batch))(vectors)


def orthogonalize(basis: Float[Array, "k s d"], w: Float[Array, "s d"]) -> tuple[Array, Array]:
    """w without its components along the basis, in two passes (one leaves the rounding of what it removed).

    Returns:
        The rest, and the components `(s, k)`.
    """
    total = jnp.zeros((len(w), len(basis)), w.dtype)
    for _ in range(2):
        components = jnp.einsum("ksd,sd->sk", basis, w, precision=HIGHEST)
        w = w - jnp.einsum("sk,ksd->sd", components, basis, precision=HIGHEST)
        total = total + components
    return w, total


def normalize(w: Float[Array, "s d"], floor: Float[Array, " s"]) -> tuple[Array, Array]:
    """Norms and unit vectors; both zero where the norm is not above the floor (breakdown)."""
    norm = jnp.linalg.norm(w, axis=-1)
    broken = ~(norm > floor)
    safe = jnp.where(broken, 1, norm)
    return jnp.where(broken, 0, norm), jnp.where(broken[:, None], 0, w / safe[:, None])


@jax.jit(static_argnums=(1, 2))
def random_unit(key: Key, shape: tuple[int, int], dtype: Any) -> Float[Array, "s d"]:
    """Random directions."""
    v = jax.random.normal(key, shape, dtype)
    return v / jnp.linalg.norm(v, axis=-1, keepdims=True)


def grow(basis: Float[Array, "k s d"], count: int, most: int) -> Float[Array, "k2 s d"]:
    """The basis with room for `count` rows: twice as many when it is full, up to `most`."""
    if count <= len(basis):
        return basis
    missing = min(2 * len(basis), most) - len(basis)
    return jnp.concatenate([basis, jnp.zeros((missing, *basis.shape[1:]), basis.dtype)])


def set_row(basis: Array, row: Any, value: Array) -> Array:
    """The basis with one row replaced."""
    return jax.lax.dynamic_update_index_in_dim(basis, value.astype(basis.dtype), row, 0)


def repeat(step: Callable, state: Any, count: int, example: Callable[[], Any]) -> Any:
    """`count` steps inside a compiled program: a loop, unrolled where the CPU would run convolutions slowly in it."""
    if jax.default_backend() == "cpu" and contains_convolution(jax.make_jaxpr(example)()):
        for _ in range(count):
            state = step(state)
        return state
    return jax.lax.fori_loop(0, count, lambda _, state: step(state), state)


def run_compiled(step: Callable, restart: Callable, state: Any, plan: Plan, example: Callable[[], Any]) -> Any:
    """All steps of the plan inside a compiled program, in whole cycles; loops end when every problem is done."""
    first, length = min(plan.steps, plan.size), plan.size - plan.keep
    unrolled = jax.default_backend() == "cpu" and contains_convolution(jax.make_jaxpr(example)())

    def steps(state, count):
        if not unrolled:
            return jax.lax.fori_loop(0, count, lambda _, state: step(state), state)
        for _ in range(count):
            state = step(state)
        return state

    state = steps(state, first)
    cycles, rest = divmod(plan.steps - first, length) if plan.steps > first else (0, 0)
    if unrolled:
        for _ in range(cycles):
            state = steps(restart(state), length)
    elif cycles:
        state = jax.lax.while_loop(
            lambda state: (state.made < first + cycles * length) & jnp.any(state.alive),
            lambda state: steps(restart(state), length),
            state,
        )
    return steps(restart(state), rest) if rest else state


def run_on_host(step: Callable, restart: Callable, settled: Callable, state: Any, plan: Plan) -> tuple[Any, int]:
    """Compiled steps one by one, until every wanted value is settled or the budget is spent.

    Returns:
        The state, and how many rows of its basis are in use.
    """
    row, due = 0, CHECK_EVERY
    small = plan.size == plan.order <= BUCKET  # worth seeing whole
    for made in range(1, plan.steps + 1):
        if row == plan.size:
            state, row = restart(state), plan.keep
        state, row = step(state, row), row + 1
        if not small and (made >= due or row == plan.size):
            if settled(state, row):
                break
            due = made + max(CHECK_EVERY, row // 4)
    return state, row


def contains_convolution(jaxpr: Any) -> bool:
    """Whether a program convolves, at any depth (jax#12868: 100 times slower inside a loop on the CPU)."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in inner.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if (hasattr(value, "eqns") or hasattr(value, "jaxpr")) and contains_convolution(value):
                return True
    return False


@pytree
class Wanted:
    """Which Ritz pairs are returned: places into the ascending values, `(s, k)`, and which of them are real."""

    places: Any
    real: Any


def wanted(which: str, k: int, count: Any, order: int, everything: bool, xp: Any) -> Wanted:
    """Places of the wanted values among `count` ascending ones (those after are empty slots)."""
    slots = xp.arange(order, dtype=count.dtype)[None, :]
    k = order if everything else min(k, order)
    low = slots[:, :k] + 0 * count[:, None]
    high = slots[:, :k] + count[:, None] - k
    if which == "largest" or everything:
        places, real = high, high >= 0
    elif which == "smallest":
        places, real = low, low < count[:, None]
    else:
        places = xp.concatenate([low, high], axis=1)
        real = xp.concatenate([low < xp.minimum(count[:, None], high[:, :1]), high >= 0], axis=1)
    return Wanted(xp.clip(places, 0, order - 1), real)


def sort_real_first(values: Array, real: Array, *others: Array) -> tuple[Array, ...]:
    """Real values ascending, empty slots at the end with NaN; the same order for arrays along their last axis."""
    order = jnp.argsort(jnp.where(real, values, jnp.inf), axis=-1)
    taken = jnp.take_along_axis(real, order, axis=-1)
    out = [jnp.where(taken, jnp.take_along_axis(values, order, axis=-1), jnp.nan), taken]
    for other in others:
        out.append(jnp.where(taken, jnp.take_along_axis(other, order, axis=-1), jnp.nan))
    return tuple(out)


def shifted(matrix: Any, filled: Any, xp: Any) -> Any:
    """A projected matrix (s, K, K) whose empty rows and columns hold one value beyond all others on the diagonal."""
    both = filled[:, :, None] & filled[:, None, :]
    matrix = xp.where(both & xp.isfinite(matrix), matrix, 0)
    beyond = 2 * xp.sqrt(xp.sum(matrix**2, axis=(1, 2))) + 1
    eye = xp.eye(matrix.shape[1], dtype=matrix.dtype)[None]
    return matrix + xp.where(filled, 0, beyond[:, None])[:, :, None] * eye


def combine(basis: Float[Array, "K s d"], weights: Float[Array, "s K k"]) -> Float[Array, "k s d"]:
    """Ritz vectors from the basis."""
    weights = jnp.asarray(weights, basis.dtype)
    return jnp.einsum("jsd,sjk->ksd", basis[: weights.shape[1]], weights, precision=HIGHEST)


def take_weights(weights: Any, chosen: Wanted, count: int, xp: Any) -> Any:
    """The columns (s, count, k) of the chosen Ritz vectors, filled up with zero rows; zero where there is none."""
    taken = xp.where(chosen.real[:, None, :], xp.take_along_axis(weights, chosen.places[:, None, :], 2), 0)
    return xp.pad(taken, ((0, 0), (0, count - taken.shape[1]), (0, 0)))


@jax.jit
def ritz_vectors(basis: Float[Array, "K s d"], weights: Float[Array, "s K k"]) -> Float[Array, "k s d"]:
    """Combinations of the basis at unit length."""
    return unit_rows(combine(basis, weights))


def unit_rows(vectors: Float[Array, "k s d"]) -> Float[Array, "k s d"]:
    """Every vector at unit length; zero stays zero."""
    norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(norms > 0, norms, 1)


def ending(residual, allowed, real, broken, whole, refused) -> Int[Array, " s"]:
    """The status that recomputed residuals (s, k) and a breakdown of the recurrence tell."""
    status = jnp.where(broken & ~whole, int(Status.INVARIANT_SUBSPACE), int(Status.CONVERGED))
    status = jnp.where(jnp.all(~real | (residual <= allowed), axis=1), status, int(Status.BUDGET_SPENT))
    status = jnp.where(jnp.all(~real | jnp.isfinite(residual), axis=1), status, int(Status.NON_FINITE))
    return jnp.where(refused == 0, status, refused).astype(jnp.int32)


def largest_vectors(ritz: Float[Array, "k s d"], real: Array, vectors: int) -> Float[Array, "s d v"] | None:
    """The vectors of the largest values in columns; NaN where there is none."""
    if not vectors:
        return None
    there = jnp.moveaxis(real, -1, 0)[:, :, None]
    return jnp.moveaxis(jnp.where(there, ritz, jnp.nan)[-vectors:], 0, -1)


def probe(product: Callable[[Array], Array], key: Key, shape: tuple[int, int], dtype: Any) -> Int[Array, " s"]:
    """Before long work: the status that three products tell.

    Not finite; not the same twice; <u, Hv> and <v, Hu> apart by more than rounding.
    """
    keys = jax.random.split(key)
    u, v = (random_unit(key, shape, dtype) for key in keys)
    return _judge(u, v, product(u), product(u), product(v))


@jax.jit
def _judge(u: Array, v: Array, hu: Array, again: Array, hv: Array) -> Int[Array, " s"]:
    skew = _apart(jnp.sum(hu * v, axis=-1), jnp.sum(hv * u, axis=-1), _scale(hu, v) + _scale(hv, u))
    status = jnp.where(skew, int(Status.NOT_SYMMETRIC), int(Status.CONVERGED))
    moved = jnp.linalg.norm(hu - again, axis=-1) > _tolerance(u.dtype) * jnp.linalg.norm(hu, axis=-1)
    status = jnp.where(moved, int(Status.NOT_DETERMINISTIC), status)
    finite = jnp.all(jnp.isfinite(hu) & jnp.isfinite(hv), axis=-1)
    return jnp.where(finite, status, int(Status.NON_FINITE)).astype(jnp.int32)


@jax.jit
def probe_adjoint(u: Array, backward: Array, v: Array, forward: Array) -> Int[Array, " s"]:
    """The status that one pair of products `backward` = A^T u and `forward` = A v tells."""
    scale = _scale(backward, v) + _scale(forward, u)
    wrong = _apart(jnp.sum(backward * v, axis=-1), jnp.sum(forward * u, axis=-1), scale)
    status = jnp.where(wrong, int(Status.NOT_ADJOINT), int(Status.CONVERGED))
    finite = jnp.all(jnp.isfinite(backward), axis=-1) & jnp.all(jnp.isfinite(forward), axis=-1)
    return jnp.where(finite, status, int(Status.NON_FINITE)).astype(jnp.int32)


def _scale(a: Array, b: Array) -> Array:
    return jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)


def _apart(a: Array, b: Array, scale: Array) -> Array:
    return jnp.abs(a - b) > _tolerance(a.dtype) * scale


def _tolerance(dtype: Any) -> float:
    """Between rounding and a difference that matters."""
    return 100 * float(jnp.finfo(dtype).eps) ** 0.75


def unbatched(value: Any, batch: int | None) -> Any:
    """Without the leading axis s where there is a single problem."""
    return value if batch is not None or value is None else value[0]


def unbatched_all(values: tuple[Any, ...], batch: int | None) -> tuple[Any, ...]:
    """The same for several, of which the last has no such axis."""
    return (*(unbatched(value, batch) for value in values[:-1]), values[-1])


def host(state: Any) -> Any:
    """Numbers of the device as float64 arrays of the host, integers and booleans as they are."""
    return jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else np.asarray(leaf),
        state,
    )
