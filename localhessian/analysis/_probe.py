"""Local curvature inside a training loop of one's own: measured from time to time, at a bounded share of its time."""

import math
import time
from collections.abc import Iterable
from typing import Any

import jax

from localhessian._arguments import (
    expect,
    expect_choice,
    expect_count,
    expect_function,
    expect_here,
    expect_key,
    expect_share,
)
from localhessian._tree import is_concrete, shapes
from localhessian._types import Activations, Context, Key, Loss
from localhessian.analysis._asked import chosen, jobs_of, missing, nothing
from localhessian.analysis._history import NOT_FINITE, Head, History, Record, read, values_of
from localhessian.analysis._measurement import Entry
from localhessian.analysis._pace import Pace
from localhessian.analysis._presets import PRESETS, Vectors
from localhessian.analysis.rows import Key as Job
from localhessian.network import SIDES, BackMatching, Chain, Wrt, back_match, by_block, expect_batch

clock = time.perf_counter
_SETUP = "back-matching"
"""What all parts of a measurement have in common."""


class Probe:
    """Local curvature beside a training step, from time to time, within a share of the loop's time.

    Call it once in every step, outside of what is compiled. It measures when `every` steps have passed and the budget
    has room; blocks that do not fit come the next time, in turn, and where not even one fits it waits. The first call
    compiles and measures everything, which is not counted but told; no later call compiles anything. It changes
    nothing: parameters, data and random numbers of the training are read, and not kept.

    Args:
        chain: The network.
        loss: Per-sample losses, shape `(n,)`.
        every: Steps between two measurements, at least.
        budget: Seconds in the probe for each second of the loop outside of it (after the first call), at most; None for
            no limit.
        figures: `"cheap"`: traces and the largest eigenvalues (4 random vectors and at most 40 products each, begun
            where the last ones ended); `"full"`: what `lh.measure` tells, whole spectra where they are affordable.
        blocks: A name or names of blocks; default all, but of blocks without parameters no H_z.
        wrt: `"params"` for H_W, `"input"` for H_z, or both.
        samples_per_block: Of an uncoupled H_z, how many samples, evenly spaced. H_W and a coupled H_z are of the whole
            batch: hand in fewer samples to make them cheaper.
        path: Of a file, in which every measurement is written at once (JSON lines). If it is there, the history goes
            on with it; records of steps that come once more are replaced.
        key: Of random vectors, with the number of the step; default `jax.random.key(0)`.

    Raises:
        TypeError: What is no chain, no function, no key, no path.
        ValueError: A setting that means nothing.
        KeyError: A block name that is not in the chain.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z @ w)), lh.Block("b", lambda w, z: z @ w)])
        >>> loss = lambda z, y: 0.5 * ((z - y) ** 2).sum(1)
        >>> params, x = {"a": jnp.eye(2), "b": jnp.ones((2, 1))}, jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> objective = jax.jit(jax.grad(lambda params: loss(chain.forward(params, x)[-1], x[:, :1]).mean()))
        >>> probe = lh.Probe(chain, loss, every=2, budget=None)
        >>> for step in range(3):
        ...     metrics = probe(step, params, x, x[:, :1])  # None, or numbers by name for any logger
        ...     params = jax.tree.map(lambda p, g: p - 0.1 * g, params, objective(params))
        >>> sorted(metrics)[:3]
        ['effective_rank/input/a', 'effective_rank/input/b', 'effective_rank/params/a']
        >>> probe.history.lambda_max.dims
        ('step', 'block', 'wrt')

    Source: measuring inside the loop as in F. Schneider, F. Dangel & P. Hennig, Cockpit (2021).
    """

    def __init__(
        self,
        chain: Chain,
        loss: Loss,
        every: int = 100,
        budget: float | None = 0.05,
        *,
        figures: str = "cheap",
        blocks: str | Iterable[str] | None = None,
        wrt: Wrt | Iterable[Wrt] = tuple(SIDES),
        samples_per_block: int = 4,
        path: Any = None,
        key: Key | None = None,
    ) -> None:
        """Check the settings; nothing is measured yet."""
        expect("chain", chain, Chain, "a chain, as `lh.Chain` and `lh.chain_from_nnx` give one (the first argument)")
        expect_function("loss", loss, "a function of outputs and `y`", takes=2)
        expect_count("every", every, 1)
        if budget is not None:
            expect_share("budget", budget)
        expect_choice("figures", figures, tuple(PRESETS))
        expect_count("samples_per_block", samples_per_block, 1)
        expect_key(key)
        self._chain, self._loss, self._every = chain, loss, int(every)
        self._figures, self._preset = figures, PRESETS[figures]
        self._asked, self._named = jobs_of(chain, blocks, wrt, "gauss_newton"), blocks is not None
        self._per_block = int(samples_per_block)
        self._history = History(path)
        self._key = jax.random.key(0) if key is None else key
        self._pace = Pace(budget)
        self._queue: list[Job] = []
        self._samples: dict[Job, tuple[int, ...] | None] = {}
        self._places: dict[Job, int] = {}
        self._starts: dict[Job, Vectors | None] = {}
        self._shapes: Any = None
        self.first_seconds: float | None = None
        """What the first call took: to compile, and to measure everything."""

    def __call__(
        self, step: int, params: Any, x: Activations, y: Any, context: Context = None
    ) -> dict[str, float] | None:
        """Measure, if it is time and there is time.

        Args:
            step: The number of the step, a number of Python: one on a device would make the loop wait for it.
            params: The parameters of the blocks, or of the model that the chain was cut from, in its layout.
            x: Inputs, samples on the leading axis. Batches of another shape than the first call's are passed over.
            y: What the loss compares with.
            context: Handed to every block that takes one.

        Returns:
            None, or figures by name: `lambda_max/params/BLOCK` and so on for what was measured now, `probe/objective`
            (J), `probe/seconds` and `probe/share`, of the loop's time; of the first call `probe/first_seconds`.

        Raises:
            ValueError: In the first call, bad input as of `lh.back_match`, nothing of what was asked for exists, or the
                file is of another probe; parameters in no layout; called under a transformation. What a later call
                refuses, as numbers that are not finite, stands in the history (`status`, `note`).
            OSError: The file cannot be written.
        """
        expect_count("step", step, 0)
        expect_batch("Probe", x)
        step = int(step)
        if self._is_early(step):
            return None
        given = (params, x, y, context)
        expect_here("Probe", *given)
        if not is_concrete(*given):
            raise ValueError("`params` are traced: call a probe between compiled steps, outside of `jax.jit`.")
        if self._shapes is not None and shapes((x, y, context)) != self._shapes:
            return None
        is_first = self.first_seconds is None
        if not is_first and self._pace.allowance(clock()) < self._pace.needed(_SETUP, self._queue):
            return None
        jax.block_until_ready(given)  # what the step before still computes is no time of the probe
        begun = clock()
        if is_first:
            return self._first(step, begun, *given)
        told = self._later(step, begun, self._pace.allowance(begun), *given)
        self._pace.spent += clock() - begun
        return told

    @property
    def share(self) -> float:
        """Seconds in the probe, after the first call, for each second of the loop outside of it."""
        return self._pace.share(clock())

    @property
    def history(self) -> Any:
        """What was measured, an xarray Dataset over step, block and wrt; NaN (status -1) where a block had no turn.

        Besides the figures `objective`, `seconds`, `share` and `note` by step. Needs xarray: `pip install
        'localhessian[sweep]'`.
        """
        return self._history.to_xarray()

    @staticmethod
    def read(path: Any) -> Any:
        """The history that a probe has written to a file, also while it goes on or after it was killed.

        Args:
            path: As given to the probe.

        Returns:
            As `history`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no history.
        """
        return read(path)

    def __repr__(self) -> str:
        """What it measures, how often, and what that has cost."""
        what = f"{self._figures} figures of {len(self._asked)} local Hessians at most, every {self._every} steps"
        if self.first_seconds is None:
            return f"Probe({what}; not called yet)"
        count, share = len(self._history.records), f"{100 * self.share:.1f} % of the loop's time"
        return f"Probe({what}; {count} records, {share}, first call {self.first_seconds:.1f} s)"

    def _is_early(self, step: int) -> bool:
        before = self._history.before(step)
        return self.first_seconds is not None and before is not None and step - before < self._every

    def _first(
        self, step: int, begun: float, params: Any, x: Activations, y: Any, context: Context
    ) -> dict[str, float]:
        """Everything once, to compile it, and from new starts a second time, for what it takes at most."""
        matching = self._matched(params, x, y, context)
        jobs, ones = self._there(matching), chosen(None, self._per_block, matching.samples)
        for job in jobs:
            apart = SIDES[job[1]].per_sample and not bool(matching.coupled[job[0]])
            self._samples[job] = ones if apart else None
        found = {job: self._measure(matching, job, step) for job in jobs}
        self._history.begin(Head(self._preset.kept, tuple(entry for entry, _ in found.values())))
        self._pace.forget(_SETUP)
        matching = self._matched(params, x, y, context)
        for job in jobs:
            self._starts[job] = None
            self._pace.forget(job)
            found[job] = self._measure(matching, job, step)
        self._places = {job: place for place, job in enumerate(jobs)}
        self._queue, self._shapes = jobs, shapes((x, y, context))
        self.first_seconds = clock() - begun
        self._pace.start(clock())
        values = {self._places[job]: of_job for job, (_, of_job) in found.items()}
        note = "the first call: compilation, and everything twice"
        record = Record(step, float(matching.objective), self.first_seconds, 0.0, note, values)
        return self._told(record) | {"probe/first_seconds": self.first_seconds}

    def _matched(self, params: Any, x: Activations, y: Any, context: Context) -> BackMatching:
        before = clock()
        matching = back_match(self._chain, by_block(self._chain, params), x, y, self._loss, context)
        jax.block_until_ready(matching)
        self._pace.took(_SETUP, clock() - before)
        return matching

    def _there(self, matching: BackMatching) -> list[Job]:
        """What of the jobs exists."""
        why = {job: missing(matching, job[0], SIDES[job[1]], asked=self._named) for job in self._asked}
        there = [job for job in self._asked if not why[job]]
        if not there:
            raise ValueError(nothing(why.values()))
        return there

    def _later(
        self, step: int, begun: float, allowed: float, params: Any, x: Activations, y: Any, context: Context
    ) -> dict[str, float]:
        """As many jobs as fit, those that have waited longest first; numbers that are not finite end no training."""
        values, objective, note = dict.fromkeys(self._places.values(), NOT_FINITE), float("nan"), ""
        try:
            matching = self._matched(params, x, y, context)
        except (ValueError, ArithmeticError) as error:
            note = str(error)
        else:
            values, objective = {}, float(matching.objective)
            for job in tuple(self._queue):
                if values and clock() - begun + self._pace.cost(job) > allowed:
                    break
                try:
                    _, values[self._places[job]] = self._measure(matching, job, step)
                except (ValueError, ArithmeticError) as error:
                    values[self._places[job]], note = NOT_FINITE, str(error)
                self._queue.append(self._queue.pop(0))
        share = self._pace.share(clock(), clock() - begun)
        return self._told(Record(step, objective, clock() - begun, share, note, values))

    def _measure(self, matching: BackMatching, job: Job, step: int) -> tuple[Entry, dict[str, float]]:
        before, key, start = clock(), jax.random.fold_in(self._key, step), self._starts.get(job)
        entry, figures, self._starts[job] = self._preset.measured(matching, job, self._samples[job], key, start)
        values = values_of(figures, self._preset.kept)
        self._pace.took(job, clock() - before)
        return entry, values

    def _told(self, record: Record) -> dict[str, float]:
        """The record in the history, and its figures by name."""
        self._history.add(record)
        jobs = list(self._places)
        figures = {
            f"{name}/{jobs[place][1]}/{jobs[place][0]}": values[name]
            for place, values in record.values.items()
            for name in self._preset.told
            if name in values
        }
        of_probe = {f"probe/{name}": getattr(record, name) for name in ("objective", "seconds", "share")}
        return {name: value for name, value in {**figures, **of_probe}.items() if not math.isnan(value)}
