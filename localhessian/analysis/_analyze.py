"""The main job: every local Hessian of a network, with progress, interruption and resumption."""

import dataclasses
import functools
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from localhessian._arguments import expect_key
from localhessian._progress import Progress, follow
from localhessian._status import Status
from localhessian._tree import floating, is_concrete, size
from localhessian._types import Activations, Array, Context, Key, Loss, Params
from localhessian._version import __version__
from localhessian.analysis._asked import UNASKED, chosen, jobs_of, missing
from localhessian.analysis._fingerprint import fingerprint
from localhessian.analysis._insight import insight
from localhessian.analysis._measured import measured, surveyed, without_figures
from localhessian.analysis._notes import nobody, not_convex
from localhessian.analysis._report import Report
from localhessian.analysis._survey import examined
from localhessian.analysis.rows import Key as RowKey
from localhessian.analysis.rows import Row, RowSpectrum
from localhessian.curvature import Part
from localhessian.linalg import Method, SpectrumInterrupt, check_method
from localhessian.network import SIDES, BackMatching, Chain, Wrt, back_match_partly, check_chain

GAUSS_NEWTON: Part = "gauss_newton"
AGAIN = (Status.FAILED.name, Status.INTERRUPTED.name)
"""Rows that `resume` does not keep."""


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
    progress: Progress | bool = False,
    resume: Report | None = None,
) -> Report:
    """Spectra and condition numbers of the local Hessians of every block, at the given parameters and data.

    Args:
        chain: The network.
        params: The parameters of each block by its name.
        x: Inputs, samples on the leading axis. With batch normalization in training mode their number matters.
        y: What the loss compares with.
        loss: Per-sample losses, shape `(n,)`.
        context: Handed to every block that takes one.
        blocks: A name or names of the blocks to analyze; default all, but of blocks without parameters no H_z.
        wrt: `"params"` for H_W, `"input"` for H_z, or both.
        part: `"gauss_newton"`, `"full"`, `"residual"`, or several.
        samples: For an uncoupled H_z, which samples: indices, or a boolean mask, as in `lh.local_hessian`; each has its
            own spectrum. A coupled block has one H_z for the whole batch.
        samples_per_block: Without `samples`, how many, evenly spaced.
        method: As in `lh.spectrum`. None takes the whole spectrum where there is structure or the matrix is small (up
            to 8e10 multiplications), else the largest eigenvalue by Lanczos and the rest by quadrature, as in
            `lh.spectral_density` with 2 starts of 12 steps: bounds and estimates, with their errors in columns.
        key: Of random start vectors; default `jax.random.key(0)`.
        progress: True shows a bar; a function is called with (done, total, what).
        resume: An earlier, interrupted report of the same model and data: its rows are kept.

    Returns:
        A report with a row for each block, side and part. A row tells in its `status` and `note` why figures are
        missing or doubtful; what does not exist (H_W without parameters, H_z of integers) and what fails, by whatever
        error, has a row too, and the others go on. `KeyboardInterrupt` returns what is done, the row at hand with what
        its products have shown, with `meta["interrupted"]` True.

    Raises:
        ValueError: Bad input, as from `lh.back_match`; an unknown side or part; `resume` belongs to something else.
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
    if not is_concrete(params, x, y, context):
        raise TypeError(
            "`analyze` runs on the host, on numbers: call it outside `jax.jit` and `jax.vmap` (there `lh.measure` "
            "works)."
        )
    check_chain(chain, params)
    expect_key(key)
    check_method(method)
    jobs = jobs_of(chain, blocks, wrt, part)
    key = jax.random.key(0) if key is None else key
    matching = back_match_partly(chain, params, x, y, loss, context)
    ones = chosen(samples, samples_per_block, matching.samples)
    meta = _meta(matching, ones, method, key)
    rows, spectra = _resumed(resume, meta)
    kept = {row.key for row in rows}
    interrupted = False
    with follow(progress, "spectrum") as show:
        try:
            for done, job in enumerate(jobs):
                show(done, len(jobs), " / ".join(job))
                if job not in kept:
                    asked = blocks is not None
                    row, found, interrupted = _analyze_one(matching, job, ones, method, key, asked)
                    rows.append(row)
                    if found is not None:
                        spectra[job] = found
                    if interrupted:
                        break
        except KeyboardInterrupt:
            interrupted = True
        show(len(rows), len(jobs), "interrupted" if interrupted else "done")
    order = {job: i for i, job in enumerate(jobs)}
    rows.sort(key=lambda row: order.get(row.key, len(order)))
    meta |= {"seconds": round(time.perf_counter() - started, 3), "interrupted": interrupted}
    return Report(tuple(rows), spectra, meta)


def _analyze_one(
    matching: BackMatching, job: RowKey, samples: tuple[int, ...], method: Method | None, key: Key, asked: bool
) -> tuple[Row, RowSpectrum | None, bool]:
    """The row, the spectrum behind it, and whether it was interrupted."""
    block, wrt, part = job
    kind, coupled = SIDES[wrt], bool(matching.coupled[block])
    why = missing(matching, block, kind, asked=asked)
    if why:
        return without_figures(job, coupled=coupled, note=why), None, False
    one_by_one = kind.per_sample and not coupled
    entered = samples if one_by_one else matching.samples
    is_outer = part == GAUSS_NEWTON and block == matching.chain.names[-1]
    how: dict[str, Any] = {
        "samples": entered,
        "coupled": coupled,
        "blame": functools.partial(not_convex, matching) if is_outer else nobody,
    }
    try:
        seen = examined(matching, job, samples if one_by_one else None, method, key)
        found, rest = seen.spectrum, seen.rest
        if rest is not None:
            row, behind = surveyed(job, found, rest, **how)
        else:
            row, behind = measured(job, found, **how)
        if part == GAUSS_NEWTON and not kind.per_sample and row.lambda_max > 0:
            told = insight(matching, block, seen.operator, found, seen.structure)
            row = dataclasses.replace(row, **dataclasses.asdict(told))
        return row, behind, False
    except SpectrumInterrupt as interrupt:
        row, found_so_far = measured(job, interrupt.spectrum, **how)
        note = f"interrupted after {row.matvecs} products"
        status = Status.INTERRUPTED.name
        return dataclasses.replace(row, status=status, converged=False, note=note), found_so_far, True
    except Exception as error:  # one row's failure, whatever it is, must not cost the others
        note = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        count = len(samples) if one_by_one else matching.samples
        return without_figures(job, coupled=coupled, note=note, status=Status.FAILED, samples=count), None, False


def _meta(matching: BackMatching, samples: tuple[int, ...], method: Method | None, key: Key) -> dict[str, Any]:
    """Provenance; its `fingerprint` tells whether two reports are of the same model, data and settings."""
    settings = samples, method, np.asarray(jax.random.key_data(key)).tolist()
    return {
        "fingerprint": fingerprint(matching, settings),
        "blocks": list(matching.chain.names),
        "parameters": size(matching.params),
        "batch": matching.samples,
        "loss": float(matching.losses[matching.chain.names[-1]]),
        "dtype": str(floating(matching.activations[-1])[0][0].dtype),
        "method": "chosen for each operator" if method is None else str(method),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "localhessian": __version__,
    }


def _resumed(resume: Report | None, meta: dict) -> tuple[list[Row], dict]:
    if resume is None:
        return [], {}
    if not isinstance(resume, Report):
        raise TypeError(f"`resume` must be a report, got {type(resume).__name__}: read a file by `lh.Report.load`.")
    if resume.meta.get("fingerprint") != meta["fingerprint"]:
        raise ValueError(
            "`resume` is a report of another model, data or settings (parameters, inputs, labels, context, blocks, "
            "loss, samples, method and key must be the same): pass the report that was interrupted, or leave `resume` "
            "out."
        )
    rows = [row for row in resume.rows if row.status not in AGAIN and row.note != UNASKED]
    return rows, {row.key: resume.spectra[row.key] for row in rows if row.key in resume.spectra}
