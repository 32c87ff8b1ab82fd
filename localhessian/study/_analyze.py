"""The main job: every local Hessian of a network, with progress, interruption and resumption."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from localhessian._progress import Progress, follow
from localhessian._status import Status
from localhessian._tree import floating, raw_bytes, size
from localhessian._types import Activations, Array, Context, Key, Loss, Params
from localhessian._version import __version__
from localhessian.curvature import local_hessian
from localhessian.linalg import Method, condition_number, quantile_condition_number, spectrum
from localhessian.network import BackMatching, Chain, back_match, sample_indices
from localhessian.study._report import Report
from localhessian.study._row import Row, RowSpectrum


def analyze(
    chain: Chain,
    params: dict[str, Params],
    x: Activations,
    y: Any,
    loss: Loss,
    context: Context = None,
    *,
    blocks: Sequence[str] | None = None,
    wrt: Sequence[str] = ("params", "input"),
    part: str | Sequence[str] = "gauss_newton",
    samples: int | Sequence[int] | Array = 16,
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
        blocks: Names of the blocks to analyze; default all.
        wrt: `"params"` for H_W, `"input"` for H_z.
        part: `"gauss_newton"`, `"full"`, `"residual"`, or several.
        samples: For an uncoupled H_z, how many samples (evenly spaced) or which ones; each has its own spectrum. A
            coupled block has one H_z for the whole batch.
        method: As in `lh.spectrum`; None chooses for each operator.
        key: Of random start vectors; default `jax.random.key(0)`.
        progress: True shows a bar; a function is called with (done, total, what).
        resume: An earlier, interrupted report of the same model and data: its rows are kept.

    Returns:
        A report with a row for each block, side and part; rows for what does not exist (H_W without parameters, H_z
        of integers) say so. `KeyboardInterrupt` returns what is done, with `meta["interrupted"]` True.

    Raises:
        ValueError: Bad input, as from `lh.back_match` and `lh.local_hessian`; `resume` belongs to something else.
        KeyError: A block name that is not in the chain.

    Cost: one `lh.back_match`, and one `lh.spectrum` for each row.

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
    for name in blocks or ():
        chain.index(name)
    key = jax.random.key(0) if key is None else key
    matching = back_match(chain, params, x, y, loss, context)
    parts = (part,) if isinstance(part, str) else tuple(part)
    jobs = [(b, w, p) for b in chain.names if blocks is None or b in blocks for w in wrt for p in parts]
    meta = _meta(matching, samples, method, key)
    rows, spectra = _resumed(resume, meta)
    interrupted = False
    with follow(progress, "spectrum") as show:
        try:
            for done, job in enumerate(jobs):
                show(done, len(jobs), " / ".join(job))
                if job not in {row.key for row in rows}:
                    row, found = _analyze_one(matching, *job, _indices(samples, matching.samples), method, key)
                    rows.append(row)
                    if found is not None:
                        spectra[job] = found
        except KeyboardInterrupt:
            interrupted = True
        show(len(rows), len(jobs), "interrupted" if interrupted else "done")
    order = {job: i for i, job in enumerate(jobs)}
    rows.sort(key=lambda row: order.get(row.key, len(order)))
    meta |= {"seconds": round(time.perf_counter() - started, 3), "interrupted": interrupted}
    return Report(tuple(rows), spectra, meta)


def _analyze_one(matching: BackMatching, block, wrt, part, samples, method, key) -> tuple[Row, RowSpectrum | None]:
    coupled = bool(matching.coupled[block])
    missing = _missing(matching, block, wrt)
    if missing:
        return _empty_row(block, wrt, part, coupled, missing), None
    one_by_one = wrt == "input" and not coupled
    operator = local_hessian(matching, block, wrt, part, samples=samples if one_by_one else None)
    found = spectrum(operator, method, key=jax.random.fold_in(key, matching.chain.index(block)))
    kappa = condition_number(found)
    rank_rule_floor = np.asarray(kappa.cutoff)[..., None] ** 2
    eigenvalues = np.asarray(found.eigenvalues, np.float64)
    nonzero = np.where(eigenvalues > rank_rule_floor, eigenvalues, np.nan)
    row = Row(
        block=block,
        wrt=wrt,
        part=part,
        size=operator.size,
        samples=len(samples) if one_by_one else matching.samples,
        coupled=coupled,
        rank=_median(kappa.rank),
        lambda_max=_median(found.lambda_max),
        lambda_min_nonzero=_median(_smallest(nonzero) if part != "residual" else np.nan),
        kappa_plus=_median(kappa.value),
        kappa_lower=_median(kappa.lower),
        kappa_upper=_median(kappa.upper),
        kappa_q05=_median(quantile_condition_number(found, 0.05)),
        kappa_q95=_median(quantile_condition_number(found, 0.95)),
        method=found.method,
        matvecs=int(found.matvecs),
        converged=bool(np.all(found.converged)),
        status=_worst(kappa.status),
    )
    return row, RowSpectrum(eigenvalues, np.asarray(found.multiplicities), np.asarray(kappa.value))


def _missing(matching: BackMatching, block: str, wrt: str) -> str:
    if wrt == "params" and not size(floating(matching.params[block])[0]):
        return "H_W does not exist: the block has no parameters"
    if wrt == "input" and not floating(matching.activations[matching.chain.index(block)])[0]:
        return "H_z does not exist: the block's input holds integers"
    return ""


def _empty_row(block: str, wrt: Any, part: str, coupled: bool, note: str) -> Row:
    nan = float("nan")
    return Row(block, wrt, part, 0, 0, coupled, nan, nan, nan, nan, nan, nan, nan, nan, "", 0, True, note=note)


def _smallest(values: np.ndarray) -> np.ndarray:
    found = np.min(np.where(np.isnan(values), np.inf, values), axis=-1)
    return np.where(np.isinf(found), np.nan, found)


def _median(values: Any) -> float:
    return float(np.median(np.asarray(values, np.float64)))


def _worst(statuses: Any) -> str:
    present = {int(code) for code in np.ravel(np.asarray(statuses))}
    severity = (
        Status.NON_FINITE,
        Status.NOT_SYMMETRIC,
        Status.INDEFINITE,
        Status.BUDGET_SPENT,
        Status.INVARIANT_SUBSPACE,
        Status.RANK_UNCERTAIN,
    )
    return next((status.name for status in severity if int(status) in present), Status.CONVERGED.name)


def _indices(samples: Any, n: int) -> tuple[int, ...]:
    is_number = isinstance(samples, (int, np.integer)) or getattr(samples, "shape", None) == ()
    if is_number and np.asarray(samples).dtype.kind in "iu":
        if samples < 1:
            raise ValueError(f"`samples` must be at least 1, got {samples}.")
        return tuple(np.unique(np.linspace(0, n - 1, min(int(samples), n)).round().astype(int)).tolist())
    return tuple(np.asarray(sample_indices(samples, n)[0]).tolist())


def _meta(matching: BackMatching, samples: Any, method: Method | None, key: Key) -> dict[str, Any]:
    """Provenance; its `fingerprint` tells whether two reports are of the same model, data and settings."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((matching.params, matching.activations[0], matching.y)):
        digest.update(raw_bytes(leaf))
    settings = f"{matching.chain.names} {samples} {method} {np.asarray(jax.random.key_data(key)).tolist()}"
    digest.update(settings.encode())
    return {
        "fingerprint": digest.hexdigest(),
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
    if resume.meta.get("fingerprint") != meta["fingerprint"]:
        raise ValueError(
            "`resume` is a report of another model, data or settings: pass the report that was interrupted, or leave "
            "`resume` out."
        )
    return list(resume.rows), dict(resume.spectra)
