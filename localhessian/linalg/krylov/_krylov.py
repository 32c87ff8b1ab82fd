"""What the Krylov methods share: settings, sizes of a run, the choice of wanted values, judging the results.

One code for two ways to run: every function that takes `xp` works on NumPy arrays on the host, around compiled
products, and on traced arrays inside a compiled program. Vectors carry a leading axis `s` of independent problems
(s = 1 for a single one) and an axis `p` of the block; a basis is `(s, rows, d)`.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect_choice, expect_count, expect_share
from localhessian._programs import compiled
from localhessian._progress import Progress, silent
from localhessian._status import Status
from localhessian._tree import is_concrete, pytree
from localhessian._types import Array, Int, Key
from localhessian.linalg.krylov._vectors import lengths, pick
from localhessian.linalg.operators import Operator, skewed
from localhessian.linalg.spectra import Spectrum, cutoff

Which = Literal["both", "largest", "smallest"]
"""Ends of a spectrum."""
ROWS = 32
"""A basis has room for at least this many vectors; a space that fits is seen whole.

Not for the largest end alone: there a shorter basis needs hardly more products, and orthogonalization along a long one
outweighs them.
"""
BASIS_BYTES = 2**26
"""A basis beyond this is restarted (heuristic)."""


@dataclasses.dataclass(frozen=True)
class Krylov:
    """The settings that the Krylov methods have in common."""

    max_matvecs: int = 200
    rtol: float = 1e-3
    which: Which = "both"
    k: int = 3
    basis_size: int | None = None
    block_size: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing.

        Raises:
            ValueError: with the setting and what it must be.
        """
        expect_choice("which", self.which, ("both", "largest", "smallest"))
        for name, least in (("max_matvecs", 1), ("k", 1), ("basis_size", 4), ("block_size", 1)):
            if name != "basis_size" or self.basis_size is not None:
                expect_count(name, getattr(self, name), least)
        if self.block_size > self.max_matvecs:
            raise ValueError(
                f"`block_size` must not exceed `max_matvecs`, got {self.block_size} and {self.max_matvecs}."
            )
        expect_share("rtol", self.rtol)

    def run(
        self, operator: Any, key: Key, vectors: int, start: Array | None = None, show: Progress = silent
    ) -> Spectrum:
        """Compute; `vectors` of the largest values are returned."""
        if not is_concrete(operator, key, start):
            return self.compute(operator, key, vectors, start, show, jnp)
        if jax.default_backend() != "cpu":
            return told_apart(_compiled(self, operator.prepare(), key, vectors, start), operator)
        try:
            return self.compute(operator, key, vectors, start, show, np)
        except jax.errors.TracerArrayConversionError:
            # The operator closes over traced values, which shows when it multiplies.
            return self.compute(operator, key, vectors, start, show, jnp)

    def compute(
        self, operator: Any, key: Key, vectors: int, start: Array | None, show: Progress, xp: ModuleType
    ) -> Spectrum:
        """The method itself: on the host with NumPy around compiled products, or traced with jax.numpy."""
        raise NotImplementedError

    def plan(self, order: int, row_numbers: int, dtype: Any, vectors: int) -> "Plan":
        """The sizes of a run on a space of dimension `order`, where one more basis row stores `row_numbers` numbers."""
        k, p = max(self.k, vectors), min(self.block_size, order)
        ends = 2 * k if self.which == "both" else k
        rows = max(self.basis_size or self._rows(order, row_numbers * dtype.itemsize, k, p), ends + max(4, 2 * p))
        rows = min(order, self.max_matvecs, rows)
        size = -(-rows // p) * p
        whole, budget = rows == order, max(self.max_matvecs // p, 1)
        # Of a full basis the wanted values are kept, and half of the rest beside them (as in thick-restart Lanczos).
        keep = min(ends + (rows - ends) // 2, size - 2 * p)
        # What is kept leaves room for whole blocks.
        keep = size - max((size - keep) // p, 1) * p
        # A basis as large as the space, or one that cannot be restarted, ends the run.
        steps = size // p if whole or keep < 1 else budget
        # Half precision is accumulated in float32: rounded are the ends only, not every sum.
        eps = float(jnp.finfo(dtype).eps) / (8 if jnp.finfo(dtype).bits < 32 else 1)
        return Plan(self.which, k, order, p, size, max(keep, 0), steps, whole, self.rtol, eps, cutoff(dtype))

    def _rows(self, order: int, row_bytes: int, k: int, p: int) -> int:
        """Of a basis whose size is left to us."""
        if self.which == "largest" and order > ROWS:
            return max(3 * k + 13, 16 * p)
        return max(BASIS_BYTES // row_bytes, ROWS)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of a run."""

    which: Which
    k: int
    order: int
    """The dimension of the space."""
    block: int
    """Vectors in a step."""
    size: int
    """Rows of the largest basis, a multiple of the block."""
    keep: int
    """How many Ritz vectors survive a restart."""
    steps: int
    """The budget."""
    whole: bool
    """Whether the basis has room for the whole space."""
    rtol: float
    eps: float
    """Of the arithmetic."""
    cutoff: float = 0.0
    """Singular values below it, relative to the largest, count as zero."""

    @property
    def skewed(self) -> float:
        """Relative: between rounding and a difference that matters."""
        return skewed(self.eps)

    def tolerance(self, value: Any, scale: Any, floor: float, xp: Any) -> Any:
        """The residual norms (s, k) that are small enough: relative, or what rounding leaves of `scale`, (s,)."""
        return xp.maximum(self.rtol * xp.abs(value), floor * self.eps * scale[:, None])

    def settled(self, values: Any, errors: Any, count: Any, scale: Any, floor: float, xp: Any) -> Any:
        """Which problems (s,) have every wanted value, by the residuals that the recurrence estimates."""
        chosen = self.chosen(count, values.shape[1], xp)
        value, error = pick(values, chosen.places, xp), pick(errors, chosen.places, xp)
        # The recomputed residual, which judges, differs by rounding.
        rounding = floor * self.eps * scale[:, None]
        allowed = xp.maximum(self.rtol * xp.abs(value) - rounding, 0.9 * rounding)
        ready = (~chosen.real | (error <= allowed)).all(axis=1)
        ends = 2 * self.k if self.which == "both" else self.k
        return ready & (chosen.real.sum(axis=1) >= min(ends, self.order))

    def chosen(self, count: Any, rows: int, xp: Any) -> "Wanted":
        """Which of `rows` ascending Ritz values are returned, `count` of which are real: all, of the whole space."""
        whole = rows >= self.order
        return wanted(self.which, self.order if whole else self.k, count, rows, whole, xp)

    def kept(self, count: Any, xp: Any) -> "Wanted":
        """Which Ritz values of a full basis survive a restart."""
        if self.which != "both":
            return wanted(self.which, self.keep, count, self.size, False, xp)
        half = self.keep // 2
        low = wanted("smallest", half, count, self.size, False, xp)
        high = wanted("largest", self.keep - half, count, self.size, False, xp)
        places = xp.concatenate([low.places, high.places], axis=1)
        return Wanted(places, xp.concatenate([low.real, high.real & (high.places >= half)], axis=1))


class Found(NamedTuple):
    """What a run tells apart from its values."""

    status: Int[Array, " s"]
    complete: Array
    real: Array
    """(s, k): which values there are."""


@pytree
class Wanted:
    """Which Ritz pairs are returned: places into the ascending values, `(s, k)`, and which of them are real."""

    places: Any
    real: Any


def wanted(which: Which, k: int, count: Any, rows: int, everything: bool, xp: Any) -> Wanted:
    """Places of the wanted values among `count` ascending ones (those after are empty slots)."""
    slots = xp.arange(rows, dtype=count.dtype)[None, :]
    k = min(k, rows)
    low = slots[:, :k] + 0 * count[:, None]
    high = slots[:, :k] + count[:, None] - k
    if which == "largest" or everything:
        places, real = high, high >= 0
    elif which == "smallest":
        places, real = low, low < count[:, None]
    else:
        places = xp.concatenate([low, high], axis=1)
        real = xp.concatenate([low < xp.minimum(count[:, None], high[:, :1]), high >= 0], axis=1)
    return Wanted(xp.minimum(xp.maximum(places, 0), rows - 1), real)


def rows(product: Callable[[Array], Array], batch: int | None) -> Callable[[Array], Array]:
    """The product on vectors with the leading axis s."""
    return product if batch is not None else lambda v: product(v[0])[None]


def products(product: Callable[[Array], Array], block: Any, batch: int | None, dtype: Any, xp: Any) -> Any:
    """Products with a block `(s, p, d)`: in a compiled program at once, on the host one after another.

    On the host one program serves every block size, and p products need no p-fold memory. The product (`mv` or `rmv`)
    works in `dtype`, the operator's own; the block may be of a wider one.
    """
    if xp is np:
        columns = [_on_host(product, block[:, j], batch, dtype)[:, None] for j in range(block.shape[1])]
        return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
    apply = rows(product, batch)
    if block.shape[1] == 1:
        return apply(block[:, 0].astype(dtype)).astype(block.dtype)[:, None]
    return jax.vmap(apply, in_axes=1, out_axes=1)(block.astype(dtype)).astype(block.dtype)


def _on_host(product: Callable[[Array], Array], v: Any, batch: int | None, dtype: Any) -> Any:
    """The same for one vector (s, d) of NumPy; outside of the product nothing is done by JAX, which takes its time."""
    given = v.astype(dtype, copy=False)
    out = np.asarray(product(given[0]))[None] if batch is None else np.asarray(product(given))
    return out.astype(v.dtype, copy=False)


_compiled = compiled(
    lambda method, operator, key, vectors, start: method.compute(operator, key, vectors, start, silent, jnp),
    static_argnums=(0, 3),
)


def repeats(multiplied: Callable, state: Any, first: Any, plan: Plan, xp: Any) -> Any:
    """(s,) whether the same product gives the same answer twice; looked at where something is wrong, on the host."""
    if xp is jnp or not np.any(state.skew > plan.skewed):
        return xp.ones(len(first), bool)
    one, again = (multiplied(first[:, :1]) for _ in range(2))
    apart, norm = (lengths(part.reshape(len(first), -1), np) for part in (one - again, one))
    return ~(apart > plan.skewed * norm)


def told_apart(found: Any, operator: Operator) -> Any:
    """What a program compiled whole says, with noise told from a wrong transpose: it asks nothing twice."""
    wrong = np.isin(found.status, (int(Status.NOT_ADJOINT), int(Status.NOT_SYMMETRIC)))
    if not wrong.any():
        return found
    symmetric = operator.symmetric
    lead = () if symmetric.batch is None else (symmetric.batch,)
    v = jnp.asarray(np.random.default_rng(0).standard_normal((*lead, symmetric.size)), symmetric.dtype)
    one, again = (np.asarray(symmetric.mv(v), np.float64) for _ in range(2))
    limit = skewed(float(jnp.finfo(symmetric.dtype).eps)) * np.linalg.norm(one, axis=-1)
    noisy = wrong & (np.linalg.norm(one - again, axis=-1) > limit)
    status = np.where(noisy, int(Status.NOT_DETERMINISTIC), found.status)
    return dataclasses.replace(found, status=jnp.asarray(status, found.status.dtype))


def judge(
    values: Any, residuals: Any, real: Any, state: Any, wrong: Status, repeated: Any, floor: float, plan: Plan, xp: Any
) -> Found:
    """What recomputed residuals `(s, k)`, a product made twice and the recurrence tell.

    Args:
        values: Ritz or singular values.
        residuals: Of the same kind.
        real: Which of them there are.
        state: Of the recurrence.
        wrong: What a skew of the recurrence means.
        repeated: (s,) whether the same product gave the same answer twice.
        floor: Residuals of floor * eps * scale are rounding.
        plan: Of the run.
        xp: NumPy or jax.numpy.
    """
    refused = xp.where(state.skew > plan.skewed, int(wrong), 0)
    refused = xp.where(repeated, refused, int(Status.NOT_DETERMINISTIC))
    finite = state.finite & xp.all(~real | xp.isfinite(residuals), axis=1)
    refused = xp.where(finite, refused, int(Status.NON_FINITE))
    whole = xp.sum(state.filled, axis=1) >= plan.order
    broken = ~xp.any(state.live, axis=1) & ~state.settled & ~whole
    status = xp.where(broken, int(Status.INVARIANT_SUBSPACE), int(Status.CONVERGED))
    ready = residuals <= plan.tolerance(values, state.scale, floor, xp)
    status = xp.where(xp.all(~real | ready, axis=1), status, int(Status.BUDGET_SPENT))
    status = xp.where(refused == 0, status, refused).astype(np.int32)
    return Found(status, whole & (refused == 0), real & (refused == 0)[:, None])


def shifted(matrix: Any, filled: Any, xp: Any) -> Any:
    """A projected matrix (s, K, K) whose empty rows and columns hold one value beyond all others on the diagonal."""
    if xp is np and filled.all() and np.isfinite(matrix).all():
        return matrix
    both = filled[:, :, None] & filled[:, None, :]
    matrix = xp.where(both & xp.isfinite(matrix), matrix, 0)
    norm = lengths(matrix.reshape(len(matrix), -1), xp)
    beyond = xp.where(norm > 0, 2 * norm, 1)
    eye = xp.eye(matrix.shape[1], dtype=matrix.dtype)[None]
    return matrix + xp.where(filled, 0, beyond[:, None])[:, :, None] * eye


def take_weights(weights: Any, chosen: Wanted, xp: Any) -> Any:
    """The columns (s, K, k) of the chosen Ritz vectors; zero where there is none."""
    return xp.where(chosen.real[:, None, :], xp.take_along_axis(weights, chosen.places[:, None, :], 2), 0)
