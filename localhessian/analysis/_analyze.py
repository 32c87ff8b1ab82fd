"""The main job: every local Hessian of a network, with progress, interruption and resumption."""

import dataclasses
import functools
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from localhessian._arguments import expect_key
from localhessian._mesh import is_elsewhere
from localhessian._progress import Progress, follow
from localhessian._status import Status
from localhessian._tree import floating_leaves, size
from localhessian._types import Activations, Array, Context, Key, Loss, Params
from localhessian._version import __version__
from localhessian.analysis._asked import UNASKED, chosen, expect_numbers, jobs_of, missing
from localhessian.analysis._fingerprint import fingerprint
from localhessian.analysis._insight import insight
from localhessian.analysis._measured import measured, surveyed, topped, without_figures
from localhessian.analysis._notes import CUT, MORE, nobody, not_convex
from localhessian.analysis._report import Report
from localhessian.analysis._route import KEPT_BYTES, Limits, Route, in_time, in_units, limits_of, route, taken, within
from localhessian.analysis._sources import Sources, expect_batches, in_batches, single_batches
from localhessian.analysis._spread import spread, stored
from localhessian.analysis._survey import QUADRATURE
from localhessian.analysis.rows import Key as RowKey
from localhessian.analysis.rows import Row, RowSpectrum
from localhessian.curvature import Part
from localhessian.linalg import Method, SpectrumInterrupt, TraceEstimate, check_method
from localhessian.network import SIDES, Chain, Wrt, back_match_partly, check_chain

GAUSS_NEWTON: Part = "gauss_newton"
SILENT = 2.0
"""Seconds after which planning is told."""
AGAIN = (Status.FAILED.name, Status.INTERRUPTED.name, Status.SKIPPED.name)
"""Rows that `resume` does not keep."""


class AnotherAnalysis(ValueError):
    """A report to resume from belongs to something else."""


def unfinished(report: Report) -> bool:
    """Whether `resume` may have more to do than was done: after an interrupt, a failure, or where limits allow more."""
    return report.meta["interrupted"] or any(row.status in AGAIN or MORE in row.note for row in report.rows)


def analyze(
    chain: Chain,
    params: dict[str, Params],
    x: Activations,
    y: Any,
    loss: Loss,
    context: Context = None,
    *,
    blocks: str | Iterable[str] | None = None,
    wrt: Wrt | Iterable[Wrt] = tuple(SIDES),
    part: Part | Iterable[Part] = "gauss_newton",
    samples: int | Sequence[int] | Array | None = None,
    samples_per_block: int = 16,
    method: Method | None = None,
    key: Key | None = None,
    batch_size: int | None = None,
    batches: int | None = None,
    max_seconds: float | None = None,
    max_bytes: float | None = None,
    progress: Progress | bool = False,
    resume: Report | None = None,
) -> Report:
    """Spectra and condition numbers of the local Hessians of every block, at the given parameters and data.

    Args:
        chain: The network.
        params: The parameters of each block by its name.
        x: Inputs, samples on the leading axis. With batch normalization in training mode their number matters. Or an
            `lh.Stream` of batches of x and y.
        y: What the loss compares with; None beside a stream.
        loss: Per-sample losses, shape `(n,)`.
        context: Handed to every block that takes one.
        blocks: A name or names of the blocks to analyze; default all, but of blocks without parameters no H_z.
        wrt: `"params"` for H_W, `"input"` for H_z, or both.
        part: `"gauss_newton"`, `"full"`, `"residual"`, or several.
        samples: For an uncoupled H_z, which samples: indices, or a boolean mask, as in `lh.local_hessian`; each has its
            own spectrum. A coupled block has one H_z for the whole batch.
        samples_per_block: Without `samples`, how many, evenly spaced.
        method: As in `lh.spectrum`. None takes the whole spectrum where there is structure or the matrix is small (up
            to 8e10 multiplications), else the largest eigenvalue by a Krylov method and, from its first 24 steps, a
            quadrature of the rest, as by `lh.spectral_density`: bounds and estimates, with their errors in columns.
        key: Of random start vectors; default `jax.random.key(0)`.
        batch_size: Hold the activations of so many samples at a time, as in `lh.Stream`; for `batches`, of each.
        batches: Analyze the first so many batches alone too, and tell each figure's mean and 95 % interval over them in
            `report.spread`. Without a stream or `batch_size`, `x` is cut into so many.
        max_seconds: What all rows may take by the clock, from when they are planned. Rows that would take more by their
            prediction (`lh.plan` shows it) get the largest eigenvalue and a quadrature instead, or it and the trace by
            a few products, or are skipped, with a note; a row that has begun is finished. Cheap rows come first.
            `batches` share it evenly with the whole.
        max_bytes: The same for the memory of each row; default what the machine has free.
        progress: True shows a bar; a function is called with (done, total, what); what is left is told in seconds.
        resume: An earlier report of the same model and data, interrupted or cut short by limits: its rows are kept, but
            those of which limits now allow more.

    Returns:
        A report with a row for each block, side and part. A row tells in its `status` and `note` why figures are
        missing or doubtful; what does not exist (H_W without parameters, H_z of integers) and what fails, by whatever
        error, has a row too, and the others go on. `KeyboardInterrupt` returns what is done, the row at hand with what
        its products have shown, with `meta["interrupted"]` True.

    Raises:
        ValueError: Bad input, as from `lh.back_match`; an unknown side or part; `resume` belongs to something else; a
            block couples the samples of a stream's batches.
        KeyError: A block name that is not in the chain.
        TypeError: Called under a transformation.

    Cost: one `lh.back_match`, and one `lh.spectrum` for each row; where that is not whole, 24 pairs of products more.
    Of each H_W 8 to 12 pairs more, and Gram matrices of its inputs up to order 1024, for what `report.summary` tells.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z @ w)), lh.Block("b", lambda w, z: z @ w)])
        >>> params = {"a": jnp.array([[1.0, 0.2], [0.0, 3.0]]), "b": jnp.ones((2, 1))}
        >>> x, y = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.zeros((2, 1))
        >>> report = lh.analyze(chain, params, x, y, lambda z, y: 0.5 * ((z - y) ** 2).sum(1))
        >>> [(row.block, row.wrt, row.size, int(row.rank)) for row in report.rows]
        [('a', 'params', 4, 4), ('a', 'input', 2, 2), ('b', 'params', 2, 2), ('b', 'input', 2, 1)]
    """
    started = time.perf_counter()
    asked_of_host = {"max_seconds": max_seconds, "max_bytes": max_bytes, "batch_size": batch_size, "batches": batches}
    expect_numbers("analyze", params, x, y, context, here=asked_of_host)
    check_chain(chain, params)
    expect_key(key)
    check_method(method)
    limits, jobs = limits_of(max_seconds, max_bytes), jobs_of(chain, blocks, wrt, part)
    key = jax.random.key(0) if key is None else key
    if batches is not None:
        limits = dataclasses.replace(limits, seconds=limits.seconds / (expect_batches(batches) + 1))
    matching = back_match_partly(chain, params, *in_batches(x, y, batch_size), loss, context)
    ones = chosen(samples, samples_per_block, matching.samples)
    sources = Sources(matching, ones)
    sources.check(jobs)
    meta = _meta(sources, method, key)
    rows, short, spectra = _resumed(resume, meta)
    interrupted = False
    with follow(progress, "spectrum") as show:
        try:
            routes = _planned(sources, jobs, rows, show, asked=blocks is not None, method=method, limits=limits)
            begun = time.perf_counter()
            while routes and not interrupted:
                left = max(limits.seconds - (time.perf_counter() - begun), 0.0)
                routes = within(routes, Limits(left, limits.bytes))
                show(len(rows), len(jobs), f"{' / '.join(routes[0].job)}{_left(routes)}")
                each = routes.pop(0)
                if each.job in short and not _tells_more(each, short[each.job]):
                    rows[each.job] = short[each.job]
                    continue
                row, found, interrupted = _analyze_one(sources, each, key)
                if not (interrupted and each.job in short):
                    rows[each.job] = row
                    spectra.pop(each.job, None)
                    spectra |= {} if found is None else {each.job: found}
        except KeyboardInterrupt:
            interrupted = True
        show(len(rows), len(jobs), "interrupted" if interrupted else "done")
    order = {job: i for i, job in enumerate(jobs)}
    known = sorted((short | rows).values(), key=lambda row: order.get(row.key, len(order)))
    if batches is not None and not interrupted:
        again: dict[str, Any] = {"blocks": blocks, "wrt": wrt, "part": part, "samples_per_block": samples_per_block}
        again |= {"method": method, "key": key, "max_seconds": limits.seconds, "max_bytes": limits.bytes}
        alone = [
            analyze(chain, params, one.x, one.y, loss, one.context, **again)
            for one in single_batches(matching, batches, batch_size)
        ]
        meta["spread"] = stored(spread(alone))
    meta |= {"seconds": round(time.perf_counter() - started, 3), "interrupted": interrupted}
    return Report(tuple(known), spectra, meta)


def _planned(
    sources: Sources,
    jobs: Sequence[RowKey],
    rows: dict[RowKey, Row],
    show: Progress,
    *,
    asked: bool,
    method: Method | None,
    limits: Limits,
) -> list[Route]:
    """The routes of what has no row yet; what has none gets its row."""
    started, routes = time.perf_counter(), list[Route]()
    for job in jobs:
        if job in rows:
            continue
        if time.perf_counter() - started > SILENT:
            show(len(rows), len(jobs), f"{' / '.join(job)}, planned")
        row = _without(sources, job, asked)
        if row is None:
            row = _routed(routes, sources, job, method, limits)
        if row is not None:
            rows[job] = row
    return routes


def _without(sources: Sources, job: RowKey, asked: bool) -> Row | None:
    """The row of what does not exist, or was not asked for."""
    matching = sources.matching
    why = missing(matching, job[0], SIDES[job[1]], asked=asked) or sources.refused(job)
    return without_figures(job, coupled=bool(matching.coupled[job[0]]), note=why) if why else None


def _routed(routes: list[Route], sources: Sources, job: RowKey, method: Method | None, limits: Limits) -> Row | None:
    """One more route; the row where that fails."""
    try:
        matching, alone = sources.of(job)
        held = math.fsum(each.cost.bytes for each in routes if each.structure is not None)
        is_timed = math.isfinite(limits.seconds)
        how: dict[str, Any] = {"timed": is_timed, "keep": KEPT_BYTES - held, "known": sources.routes}
        routes.append(route(matching, job, alone, method, limits.bytes, **how))
    except Exception as error:  # one row's failure, whatever it is, must not cost the others
        return _failed(sources, job, error)
    return None


def _tells_more(found: Route, row: Row) -> bool:
    """Whether a route tells more than a row that limits cut short."""
    return found.method is not None and not found.is_short and not (found.has_rest and QUADRATURE in row.method)


def _failed(sources: Sources, job: RowKey, error: Exception) -> Row:
    note = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    coupled = bool(sources.matching.coupled[job[0]])
    return without_figures(job, coupled=coupled, note=note, status=Status.FAILED, samples=sources.count(job))


def _skipped(sources: Sources, found: Route) -> Row:
    known = f"{in_time(found.cost.seconds)} and " if math.isfinite(found.cost.seconds) else ""
    note = f"skipped: it would take about {known}{in_units(found.cost.bytes)}; " + (
        f"{found.reason}; {MORE}, or name a method"
    )
    coupled, samples = bool(sources.matching.coupled[found.job[0]]), sources.count(found.job)
    size = found.operator.size
    return without_figures(found.job, coupled=coupled, note=note, status=Status.SKIPPED, size=size, samples=samples)


def _left(routes: Sequence[Route]) -> str:
    """What is left, where it is worth telling."""
    seconds = math.fsum(each.cost.seconds for each in routes if each.method and math.isfinite(each.cost.seconds))
    return f", about {in_time(seconds)} left" if seconds >= 1 else ""


def _analyze_one(sources: Sources, found_route: Route, key: Key) -> tuple[Row, RowSpectrum | None, bool]:
    """The row, the spectrum behind it, and whether it was interrupted."""
    job = block, wrt, part = found_route.job
    matching, whole = sources.matching, sources.whole
    kind, coupled = SIDES[wrt], bool(matching.coupled[block])
    if found_route.method is None:
        return _skipped(sources, found_route), None, False
    is_here = not is_elsewhere(found_route.operator)
    is_outer = part == GAUSS_NEWTON and block == matching.chain.names[-1]
    how: dict[str, Any] = {
        "samples": sources.samples if sources.one_by_one(job) else matching.samples,
        "coupled": coupled,
        "blame": functools.partial(not_convex, whole) if is_outer and whole and is_here else nobody,
    }
    try:
        seen = taken(found_route, sources.first, key)
        found, rest = seen.spectrum, seen.rest
        if isinstance(rest, TraceEstimate):
            row, behind = topped(job, found, rest, **how)
        elif rest is not None:
            row, behind = surveyed(job, found, rest, **how)
            row = dataclasses.replace(row, note="; ".join(filter(None, (row.note, CUT if found_route.is_cut else ""))))
        else:
            row, behind = measured(job, found, **how)
        if whole and is_here and part == GAUSS_NEWTON and not kind.per_sample and row.lambda_max > 0:
            told = insight(whole, block, found_route.operator, found, seen.structure)
            row = dataclasses.replace(row, **told)
        return row, behind, False
    except SpectrumInterrupt as interrupt:
        row, found_so_far = measured(job, interrupt.spectrum, **how)
        note = f"interrupted after {row.matvecs} products"
        status = Status.INTERRUPTED.name
        return dataclasses.replace(row, status=status, converged=False, note=note), found_so_far, True
    except Exception as error:  # one row's failure, whatever it is, must not cost the others
        return _failed(sources, job, error), None, False


def _meta(sources: Sources, method: Method | None, key: Key) -> dict[str, Any]:
    """Provenance; its `fingerprint` tells whether two reports are of the same model, data and settings."""
    matching, first = sources.matching, sources.first
    settings = sources.samples, method, np.asarray(jax.random.key_data(key)).tolist(), *sources.data
    return {
        "fingerprint": fingerprint(first, settings),
        "blocks": list(matching.chain.names),
        "parameters": size(matching.params),
        "batch": matching.samples,
        "loss": float(matching.objective),
        "dtype": str(floating_leaves(first.activations[-1])[0].dtype),
        "method": "chosen for each operator" if method is None else str(method),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "localhessian": __version__,
    }


def _resumed(
    resume: Report | None, meta: dict
) -> tuple[dict[RowKey, Row], dict[RowKey, Row], dict[RowKey, RowSpectrum]]:
    """Rows that are kept, rows that limits cut short, and the spectra behind both."""
    if resume is None:
        return {}, {}, {}
    if not isinstance(resume, Report):
        raise TypeError(f"`resume` must be a report, got {type(resume).__name__}: read a file by `lh.Report.load`.")
    if resume.meta.get("fingerprint") != meta["fingerprint"]:
        raise AnotherAnalysis(
            "`resume` is a report of another model, data or settings (parameters, inputs, labels, context, blocks, "
            "loss, samples, method and key must be the same): pass the report that was interrupted, or leave `resume` "
            "out."
        )
    rows = {row.key: row for row in resume.rows if row.status not in AGAIN and row.note != UNASKED}
    short = {key: row for key, row in rows.items() if MORE in row.note}
    kept = {key: row for key, row in rows.items() if key not in short}
    return kept, short, {key: found for key, found in resume.spectra.items() if key in rows}
