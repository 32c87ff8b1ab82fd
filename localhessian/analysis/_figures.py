"""What a spectrum comes to, each figure defined once: for rows of reports, and under transformations."""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from localhessian._status import Status, quietly
from localhessian._tree import is_concrete, pytree
from localhessian._types import Array, Float, Int
from localhessian.linalg import ConditionNumber, Density, Spectrum, TraceEstimate, quantile_condition_number, summarize

_KNOWN = (
    Status.NON_FINITE,
    Status.NOT_DETERMINISTIC,
    Status.NOT_LINEAR,
    Status.NOT_SYMMETRIC,
    Status.NOT_ADJOINT,
    Status.NOT_CONFIRMED,
    Status.OUT_OF_RANGE,
    Status.INDEFINITE,
    Status.BUDGET_SPENT,
    Status.INVARIANT_SUBSPACE,
    Status.RANK_UNCERTAIN,
    Status.ZERO,
    Status.CONVERGED,
)
SEVERITY = (*(status for status in Status if status not in _KNOWN), *_KNOWN)
"""The worst first: of several samples that one is told. A status that no spectrum is known to have is the worst."""
QUANTILES = (5, 95)
"""In percent."""


@pytree
class Figures:
    """One local Hessian in numbers; of an uncoupled H_z, medians over those of its samples that have a value.

    On the host scalars of NumPy in float64, under transformations arrays of JAX in the spectrum's own dtype.
    """

    rank: Float[Array | np.ndarray, "*v"]
    """By the rank rule; of an incomplete spectrum the certified part, of a quadrature the lower end of its interval."""
    lambda_max: Float[Array | np.ndarray, "*v"]
    lambda_min_nonzero: Float[Array | np.ndarray, "*v"]
    """Certified; NaN where no non-zero eigenvalue is."""
    kappa_plus: Float[Array | np.ndarray, "*v"]
    """lambda_max over the smallest non-zero eigenvalue; NaN where unknown, then `kappa_lower` bounds it."""
    kappa_lower: Float[Array | np.ndarray, "*v"]
    kappa_upper: Float[Array | np.ndarray, "*v"]
    kappa_q05: Float[Array | np.ndarray, "*v"]
    """Quantile condition number: lambda_max over the 5 % quantile of the non-zero eigenvalues."""
    kappa_q05_lower: Float[Array | np.ndarray, "*v"]
    """A quadrature's kappa_q05 lies between these; of a whole spectrum they are the value."""
    kappa_q05_upper: Float[Array | np.ndarray, "*v"]
    kappa_q95: Float[Array | np.ndarray, "*v"]
    """lambda_max over the 95 % quantile: how far the largest eigenvalues stand out."""
    kappa_q95_lower: Float[Array | np.ndarray, "*v"]
    kappa_q95_upper: Float[Array | np.ndarray, "*v"]
    trace: Float[Array | np.ndarray, "*v"]
    """The sum of the eigenvalues."""
    trace_error: Float[Array | np.ndarray, "*v"]
    """Standard error of the trace; 0 of a whole spectrum."""
    stable_rank: Float[Array | np.ndarray, "*v"]
    """||H||_F^2 / lambda_max^2; NaN where neither all eigenvalues nor a quadrature is there."""
    effective_rank: Float[Array | np.ndarray, "*v"]
    """trace / lambda_max."""
    valued: Int[Array | np.ndarray, "*v"]
    """How many samples have a value, H is not zero there: those that the medians are over; of one matrix 1 or 0."""
    complete: Array | np.ndarray
    """Boolean: every eigenvalue is there (of every sample), by dimension count."""
    status: Int[Array | np.ndarray, "*v"]
    """A `localhessian.Status` code; of several samples the worst of those that have a value."""


@quietly()
def figures(found: Spectrum, kappa: ConditionNumber, /) -> Figures:
    """Those of a spectrum; a batched one is of samples, one by one.

    Args:
        found: Any spectrum.
        kappa: Of it.
    """
    xp, flat = _ground(found)
    codes = xp.ravel(xp.asarray(kappa.status))
    # H = 0 has a rank (0) and a lambda_max (0), but no condition number, and says nothing of the other samples.
    valued = codes != int(Status.ZERO)
    has_value = xp.any(valued)
    some = valued | ~has_value
    summary = summarize(found)
    known = xp.all(xp.asarray(found.complete))
    told = {
        "rank": kappa.rank,
        "lambda_max": found.lambda_max,
        "lambda_min_nonzero": kappa.lambda_min_nonzero,
        "kappa_plus": kappa.value,
        "kappa_lower": kappa.lower,
        "kappa_upper": kappa.upper,
        "trace": summary.trace,
        "stable_rank": summary.stable_rank,
        "effective_rank": summary.effective_rank,
    }
    for q in QUANTILES:
        quantile = quantile_condition_number(found, q / 100)
        told |= {f"kappa_q{q:02}{end}": quantile for end in ("", "_lower", "_upper")}
    told = _medians(xp, {name: flat(figure) for name, figure in told.items()}, some)
    return Figures(
        **told | {"kappa_upper": xp.where(has_value, told["kappa_upper"], xp.nan)},
        trace_error=xp.where(known, xp.zeros_like(told["trace"]), xp.nan),
        valued=xp.sum(valued, dtype=np.int32),
        complete=known,
        status=_worst(xp, codes, some),
    )


@quietly()
def surveyed_figures(found: Spectrum, kappa: ConditionNumber, rest: Density, /) -> Figures:
    """Those of a spectrum of which only the largest value was sought, and what a quadrature tells of all.

    Args:
        found: With the largest value.
        kappa: Of it.
        rest: Of the same operator. Where it says nothing, the figures are those of `found` alone.
    """
    xp, flat = _ground(found)
    plain = figures(found, kappa)
    largest = xp.fmax(flat(found.lambda_max), flat(rest.largest))
    some = largest > 0
    negative, zero = rest.negative.interval(), rest.zero.interval()
    indefinite = xp.any((flat(negative[0]) > 0) & some) | (plain.status == int(Status.INDEFINITE))
    sure = largest - flat(found.residual_norms).reshape(largest.shape[0], -1)[:, -1]
    trace = rest.size * flat(rest.mean.value)
    of_samples = {
        "rank": xp.ceil(rest.size * xp.clip(1 - flat(zero[1]) - flat(negative[1]), 1 / rest.size, 1)),
        "lambda_max": largest,
        "kappa_lower": xp.maximum(sure / flat(rest.nonzero), 1),
        "trace": trace,
        "trace_error": rest.size * flat(rest.mean.probe_error),
        "stable_rank": rest.size * flat(rest.mean_square.value) / largest**2,
        "effective_rank": trace / largest,
    }
    for q in QUANTILES:
        interval, name = rest.quantile_condition_number(q / 100), f"kappa_q{q:02}"
        of_samples |= {name: interval.value, f"{name}_lower": interval.lower, f"{name}_upper": interval.upper}
    told = _medians(xp, {name: flat(figure) for name, figure in of_samples.items()}, some)
    for q in QUANTILES:
        # Where zeros and small values are not told apart: a bound, no estimate.
        name = f"kappa_q{q:02}"
        told[name] = xp.where(xp.isfinite(told[f"{name}_upper"]), told[name], xp.nan)
    told |= {
        "lambda_min_nonzero": xp.full_like(plain.trace, xp.nan),
        "kappa_lower": xp.where(indefinite, xp.nan, told["kappa_lower"]),
        "kappa_upper": xp.where(indefinite, xp.nan, xp.full_like(plain.trace, xp.inf)),
        "status": xp.where(indefinite, xp.full_like(plain.status, int(Status.INDEFINITE)), plain.status),
    }
    usable = xp.all(flat(rest.status) == 0) & xp.any(some)
    told = {name: xp.where(usable, value, getattr(plain, name)) for name, value in told.items()}
    return Figures(**{**vars(plain), **told})


@quietly()
def topped_figures(found: Spectrum, kappa: ConditionNumber, total: TraceEstimate, /) -> Figures:
    """Those of a spectrum of which only the largest value was sought, and what an estimate tells of the trace.

    Args:
        found: With the largest value.
        kappa: Of it.
        total: Of the same operator. A spectrum that came whole knows better.
    """
    xp, flat = _ground(found)
    plain, largest, trace = figures(found, kappa), flat(found.lambda_max), flat(total.value)
    of_samples = {"trace": trace, "trace_error": flat(total.standard_error), "effective_rank": trace / largest}
    told = _medians(xp, of_samples, largest > 0)
    told = {name: xp.where(plain.complete, getattr(plain, name), value) for name, value in told.items()}
    return dataclasses.replace(plain, **told)


def _ground(found: Spectrum) -> tuple[ModuleType, Callable[[Any], Any]]:
    """NumPy or jax.numpy, and how a figure of each sample becomes a flat array of one real type there."""
    xp: Any = np if is_concrete(found) else jnp
    dtype = np.float64 if xp is np else found.eigenvalues.dtype
    return xp, lambda figure: xp.ravel(xp.asarray(figure)).astype(dtype)


def _medians(xp: Any, figures: dict[str, Any], some: Any) -> dict[str, Any]:
    """Of each figure over the samples that have a value; NaN where none has. All by one sort."""
    values = xp.stack(list(figures.values()))
    there = some[None] & ~xp.isnan(values)
    ordered = xp.sort(xp.where(there, values, xp.inf), axis=-1)
    count = xp.sum(there, axis=-1, keepdims=True)
    middle = xp.concatenate([xp.maximum(count - 1, 0) // 2, xp.minimum(count // 2, values.shape[-1] - 1)], axis=-1)
    low, high = xp.moveaxis(xp.take_along_axis(ordered, middle, axis=-1), -1, 0)
    # The middle of two infinities is infinite.
    medians = xp.where(count[:, 0] > 0, xp.where(low == high, low, low + (high - low) / 2), xp.nan)
    return {name: medians[i] for i, name in enumerate(figures)}


def _worst(xp: Any, codes: Any, some: Any) -> Any:
    """The most severe status of some samples, as a code."""
    places = np.argsort([int(status) for status in SEVERITY]).astype(np.int32)
    severity = xp.min(xp.where(some, xp.asarray(places)[codes], len(SEVERITY) - 1))
    return xp.asarray([int(status) for status in SEVERITY], dtype=np.int32)[severity]
