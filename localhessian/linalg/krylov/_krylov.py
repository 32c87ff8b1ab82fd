"""What the Krylov methods share: their settings, and one driver for both.

A method says by a `Recurrence` what it multiplies by, what a step is, and what its Ritz pairs are; how a run starts,
goes on, restarts and ends, how its results are judged, sorted and packed stands here.
"""

import abc
import copy
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect_choice, expect_count, expect_share
from localhessian._mesh import is_traced
from localhessian._programs import compiled
from localhessian._progress import Progress, silent
from localhessian._status import Status
from localhessian._tree import array_of
from localhessian._types import Array, Int, Key
from localhessian.linalg.krylov._arithmetic import HOST, TRACED, Arithmetic
from localhessian.linalg.krylov._drive import drive, on_the_host, run_compiled, runs_whole
from localhessian.linalg.krylov._plan import ROWS, Plan, Which, take_weights
from localhessian.linalg.krylov._recurrence import State, begin, compress, jacobi_of, residual_norms, retire
from localhessian.linalg.krylov._vectors import largest_vectors, sort_real_first
from localhessian.linalg.operators import Operator, eps_of, is_repeatable, unbatched
from localhessian.linalg.spectra import Spectrum, SpectrumInterrupt, cutoff, packed

Result = TypeVar("Result", bound=Any)
"""A spectrum, or what else bears a status."""
BASIS_BYTES = 2**26
"""A basis beyond this is restarted (heuristic)."""


class Pairs(NamedTuple):
    """Ritz pairs with recomputed residuals; of a factor, singular triplets."""

    values: Any
    """(s, k)."""
    residuals: Any
    real: Any
    """(s, k): which of them there are."""
    vectors: Any
    """(s, k, d), of the operator."""


class Recurrence(abc.ABC):
    """One method around the products of a prepared operator; vectors of `order` numbers, of U of `long`."""

    on: Arithmetic
    prepared: Any
    """What it multiplies by."""
    batch: int | None
    dtype: Any
    """Of the operator."""
    order: int
    long: int | None
    size: int
    """Of the operator; the order where that is not the smaller side of a factor."""
    start_size: int
    """The dimension in which a random start is random."""
    is_isotropic: bool
    """Whether a random start has no direction that it prefers."""
    of_factor: ClassVar[bool]
    """Whether values are singular values of a factor."""
    wrong: ClassVar[Status]
    """What a component of a product means that was not foretold."""
    rounding: ClassVar[float]
    """Residuals of rounding * eps * norm are what rounding leaves."""

    def held(self) -> "Recurrence":
        """The same with products that are constants to derivatives."""
        other = copy.copy(self)
        other.prepared = self.on.held(self.prepared)
        return other

    @abc.abstractmethod
    def start(self, start: Array | None, key: Key, p: int, mix: bool) -> tuple[Any, int]:
        """The first block, (s, p, order), and how many products it took for each vector.

        `mix` random vectors with those given.
        """

    @abc.abstractmethod
    def step(self, state: State, plan: Plan) -> State:
        """One step."""

    @abc.abstractmethod
    def ritz(self, state: State, plan: Plan) -> tuple[Any, Any, Any, Any]:
        """Ritz values ascending (s, K), left (None: the same) and right weights (s, K, K), and how many are real.

        Empty slots stand last.
        """

    @abc.abstractmethod
    def pairs(self, state: State, plan: Plan) -> Pairs:
        """What is returned, with fresh products."""

    @abc.abstractmethod
    def whole(self, values: Any, residuals: Any, real: Any, verdict: "Verdict", rows: int) -> tuple[Any, Any, Any]:
        """Values, multiplicities and errors with what is known beside the run; `rows` of the basis were used."""

    def restart(self, state: State, plan: Plan) -> State:
        """The kept Ritz vectors, or singular triplets, become the basis."""
        on, (settled, (values, left, right, count)) = self.on, self._examine(state, plan)
        chosen = plan.kept(count, on)
        kept = on.xp.where(chosen.real, on.xp.take_along_axis(values, chosen.places, 1), 0)
        left, right = (None if part is None else take_weights(part, chosen, on) for part in (left, right))
        return retire(compress(state, right, left, kept, chosen.real, plan, on), settled, on)

    def settled(self, state: State, plan: Plan) -> Any:
        """(s,): which problems need no more steps, by the residuals that the recurrence estimates."""
        return self._examine(state, plan)[0]

    def _examine(self, state: State, plan: Plan) -> tuple[Any, tuple[Any, Any, Any, Any]]:
        """Which problems have every wanted value, and the decomposition that tells."""
        values, left, right, count = self.ritz(state, plan)
        errors = residual_norms(state, right if left is None else left, self.on)
        settled = plan.settled(values, errors, count, state.scale, self.rounding, self.on)
        # One that was filled up after a breakdown is seen whole.
        return settled & ~(state.broken & plan.whole), (values, left, right, count)


class Verdict(NamedTuple):
    """What a run tells apart from its values."""

    status: Int[Array, " s"]
    complete: Array
    real: Array
    """(s, k): which values there are."""
    norm: Array
    """(s,): the operator's, or the factor's, is at least this."""


@dataclasses.dataclass(frozen=True)
class Krylov(abc.ABC):
    """The settings that the Krylov methods have in common."""

    max_matvecs: int = 200
    rtol: float = 1e-3
    which: Which = "both"
    k: int = 3
    basis_size: int | None = None
    block_size: int = 1
    min_matvecs: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing, by a ValueError with the setting and what it must be."""
        expect_choice("which", self.which, ("both", "largest", "smallest"))
        for name, least in (
            ("max_matvecs", 1),
            ("k", 1),
            ("basis_size", 4),
            ("block_size", 1),
            ("min_matvecs", 0),
        ):
            if name != "basis_size" or self.basis_size is not None:
                expect_count(name, getattr(self, name), least)
        for name in ("block_size", "min_matvecs"):
            if getattr(self, name) > self.max_matvecs:
                raise ValueError(
                    f"`{name}` must not exceed `max_matvecs`, got {getattr(self, name)} and {self.max_matvecs}."
                )
        expect_share("rtol", self.rtol)

    def run(
        self, operator: Operator, key: Key, vectors: int, start: Array | None = None, show: Progress = silent
    ) -> Spectrum:
        """Compute; `vectors` of the largest values are returned."""
        if is_traced(operator, key, start):
            return self.compute(operator, key, vectors, start, show, TRACED)
        if runs_whole(operator):
            return told_apart(_compiled(self, operator.prepare(), key, vectors, start), operator)
        try:
            with on_the_host(operator):
                return told_apart(self.compute(operator, key, vectors, start, show, HOST), operator)
        except jax.errors.TracerArrayConversionError:
            # The operator closes over traced values, which shows when it multiplies.
            return self.compute(operator, key, vectors, start, show, TRACED)

    @abc.abstractmethod
    def recurrence(self, operator: Operator, on: Arithmetic) -> Recurrence:
        """That of the method."""

    def compute(
        self, operator: Operator, key: Key, vectors: int, start: Array | None, show: Progress, on: Arithmetic
    ) -> Spectrum:
        """The method itself: on the host with NumPy around compiled products, or traced with jax.numpy."""
        xp, run = on.xp, self.recurrence(operator, on)
        numbers = (run.batch or 1) * (run.order + (run.long or 0))
        plan = self.plan(run.order, numbers, run.dtype, vectors)
        # A derivative is that of a Rayleigh quotient of a fixed vector, v^T dH v: the iteration has none.
        still = run.held()
        block, spent = still.start(start, key, plan.block, self.which != "largest")
        state = begin(on.held(block), run.long, plan, key, on)
        state, first, interrupted = self._steps(still, state, plan, show, operator.label, on)
        state, first = on.held((state, first))
        pairs = run.pairs(state, plan)
        pairs = pairs._replace(residuals=on.held(pairs.residuals))
        verdict = _judge(pairs, state, run, plan, on)
        largest = largest_vectors(pairs.vectors, pairs.values, verdict.real, vectors, on)
        values, residuals, real = sort_real_first(pairs.values, pairs.residuals, verdict.real, on)
        values, multiplicities, errors = run.whole(values, residuals, real, verdict, on.in_use(state.row, plan.size))
        made = (state.made + spent) * plan.block + pairs.values.shape[1]
        is_one = start is None and plan.block == 1 and run.is_isotropic
        known = jacobi_of(first, on.in_use(first.row, plan.size), on) if is_one else None
        parts = (values, multiplicities, errors, largest, verdict.status, verdict.complete, verdict.norm)
        values, multiplicities, errors, largest, status, complete, norm = (unbatched(part, run.batch) for part in parts)
        spectrum = packed(
            values,
            multiplicities,
            errors,
            of_factor=run.of_factor,
            status=status,
            complete=complete,
            matvecs=xp.asarray(made, np.int32),
            size=run.size,
            dtype=run.dtype,
            method=str(self),
            vectors=largest,
            krylov_steps=array_of(xp.minimum(xp.asarray(state.made, np.int32), plan.size // plan.block), np.int32),
            start_size=run.start_size if start is None else 0,
            ends=self.which,
            norm=norm,
            jacobi=jax.tree.map(lambda part: unbatched(part, run.batch), known),
        )
        if interrupted:
            raise SpectrumInterrupt(spectrum)
        return spectrum

    def _steps(
        self, run: Recurrence, state: State, plan: Plan, show: Progress, label: str, on: Arithmetic
    ) -> tuple[State, State, bool]:
        """All steps; the state after them, that before the first restart, and whether they were interrupted."""
        step, restart = (lambda state, go=go: go(state, plan) for go in (run.step, run.restart))
        if on is TRACED:
            return *run_compiled(step, restart, state, plan), False
        tell = lambda steps: show(steps * plan.block, plan.steps * plan.block, label)
        return drive(step, restart, lambda state: run.settled(state, plan), state, plan, tell)

    def plan(self, order: int, row_numbers: int, dtype: Any, vectors: int) -> Plan:
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
        eps = eps_of(dtype) / (8 if jnp.finfo(dtype).bits < 32 else 1)
        least = min(max(-(-self.min_matvecs // p), 1), steps)
        return Plan(self.which, k, order, p, size, max(keep, 0), steps, whole, self.rtol, eps, cutoff(dtype), least)

    def _rows(self, order: int, row_bytes: int, k: int, p: int) -> int:
        """Of a basis whose size is left to us."""
        if self.which == "largest" and order > ROWS:
            return max(3 * k + 13, 16 * p)
        return max(BASIS_BYTES // row_bytes, ROWS)


_compiled: Callable[..., Spectrum] = compiled(
    lambda method, operator, key, vectors, start: method.compute(operator, key, vectors, start, silent, TRACED),
    static_argnums=(0, 3),
)


def told_apart(found: Result, operator: Operator) -> Result:
    """A result whose products were not symmetric, or not adjoint, with noise told from that: it is multiplied twice."""
    wrong = np.isin(found.status, (int(Status.NOT_ADJOINT), int(Status.NOT_SYMMETRIC)))
    if not wrong.any():
        return found
    noisy = wrong & ~is_repeatable(operator.symmetric)
    status = np.where(noisy, int(Status.NOT_DETERMINISTIC), found.status)
    return dataclasses.replace(found, status=jnp.asarray(status, found.status.dtype))


def _judge(pairs: Pairs, state: State, run: Recurrence, plan: Plan, on: Arithmetic) -> Verdict:
    """What recomputed residuals and the recurrence tell."""
    xp, values, residuals, real = on.xp, *pairs[:3]
    refused = xp.where(state.skew > plan.skewed, int(run.wrong), 0)
    finite = state.finite & xp.all(~real | xp.isfinite(residuals), axis=1)
    refused = xp.where(finite, refused, int(Status.NON_FINITE))
    filled = xp.sum(state.filled, axis=1) >= plan.order
    broken = ~xp.any(state.live, axis=1) & ~state.settled & ~filled
    status = xp.where(broken, int(Status.INVARIANT_SUBSPACE), int(Status.CONVERGED))
    ready = residuals <= plan.tolerance(values, state.scale, 2 * run.rounding, on)
    status = xp.where(xp.all(~real | ready, axis=1), status, int(Status.BUDGET_SPENT))
    status = xp.where(refused == 0, status, refused).astype(np.int32)
    real = real & (refused == 0)[:, None]
    norm = xp.fmax(state.scale, xp.max(xp.where(real, xp.abs(values), 0), axis=1))
    return Verdict(status, filled & (refused == 0), real, norm)
