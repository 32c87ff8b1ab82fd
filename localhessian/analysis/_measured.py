"""From a spectrum to a row of a report: medians over the samples that have a value, and what is doubtful in words."""

import dataclasses
from typing import Any

import numpy as np

from localhessian._status import Status
from localhessian.analysis._row import Key, Row, RowSpectrum
from localhessian.linalg import (
    ConditionNumber,
    Density,
    Spectrum,
    condition_number,
    quantile_condition_number,
    summarize,
)

LIKELY = 0.01
"""A probability of having missed lambda_max above this is told."""
_SEVERITY = (
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
)
_NAN = float("nan")


def measured(key: Key, found: Spectrum, *, samples: int, coupled: bool) -> tuple[Row, RowSpectrum]:
    """The row of a spectrum, and what stands behind it.

    Args:
        key: (block, wrt, part).
        found: A batched spectrum is of samples, one by one.
        samples: How many entered.
        coupled: Whether the block couples them.
    """
    kappa = condition_number(found)
    # H = 0 has a rank (0) and a lambda_max (0), but no condition number, and says nothing of the other samples.
    valued = np.ravel(np.asarray(kappa.status) != Status.ZERO)
    some = valued if valued.any() else np.ones_like(valued)
    median = lambda figure: _median(figure, some)
    summary = summarize(found)
    known = np.asarray(found.complete)
    quantiles = {q: np.asarray(quantile_condition_number(found, q / 100)) for q in (5, 95)}
    block, wrt, part = key
    row = Row(
        block=block,
        wrt=wrt,
        part=part,
        size=found.size,
        samples=samples,
        coupled=coupled,
        rank=median(kappa.rank),
        lambda_max=median(found.lambda_max),
        lambda_min_nonzero=median(kappa.lambda_min_nonzero),
        kappa_plus=median(kappa.value),
        kappa_lower=median(kappa.lower),
        kappa_upper=median(kappa.upper) if valued.any() else _NAN,
        kappa_q05=median(quantiles[5]),
        kappa_q95=median(quantiles[95]),
        method=found.method,
        matvecs=int(found.matvecs),
        converged=bool(np.all(found.converged)),
        status=_worst(np.asarray(kappa.status)[some.reshape(np.shape(kappa.status))]).name,
        note=_note(kappa),
        trace=median(summary.trace),
        trace_error=0.0 if known.all() else _NAN,
        effective_rank=median(summary.effective_rank),
        **{f"kappa_q{q:02}_{end}": median(value) for q, value in quantiles.items() for end in ("lower", "upper")},
    )
    eigenvalues = np.asarray(found.eigenvalues, np.float64)
    return row, RowSpectrum(eigenvalues, np.asarray(found.multiplicities), np.asarray(kappa.value))


def surveyed(key: Key, found: Spectrum, rest: Density, *, samples: int, coupled: bool) -> tuple[Row, RowSpectrum]:
    """As `measured`, of a spectrum of which only the largest value was sought, and what a quadrature tells of all."""
    row, known = measured(key, found, samples=samples, coupled=coupled)
    largest = np.fmax(_flat(found.lambda_max), _flat(rest.largest))
    some = largest > 0
    if np.any(_flat(rest.status)) or not some.any():
        return row, known
    median = lambda figure: _median(figure, some)
    negative, zero = rest.negative.interval(), rest.zero.interval()
    indefinite = bool((_flat(negative[0])[some] > 0).any())
    sure = largest - np.asarray(found.residual_norms, np.float64).reshape(len(largest), -1)[:, -1]
    trace, quantiles = rest.size * _flat(rest.mean.value), {q: rest.quantile_condition_number(q / 100) for q in (5, 95)}
    figures: dict[str, Any] = {
        "rank": median(np.ceil(rest.size * np.clip(1 - _flat(zero[1]) - _flat(negative[1]), 1 / rest.size, 1))),
        "lambda_max": median(largest),
        "lambda_min_nonzero": _NAN,
        "kappa_lower": _NAN if indefinite else median(np.maximum(sure / _flat(rest.nonzero), 1)),
        "kappa_upper": _NAN if indefinite else np.inf,
        "trace": median(trace),
        "trace_error": median(rest.size * _flat(rest.mean.probe_error)),
        "effective_rank": median(trace / largest),
    }
    for q, interval in quantiles.items():
        name = f"kappa_q{q:02}"
        ends = {name: interval.value, f"{name}_lower": interval.lower, f"{name}_upper": interval.upper}
        figures |= {name: median(figure) for name, figure in ends.items()}
        if not np.isfinite(figures[f"{name}_upper"]):  # zeros and small values are not told apart: a bound, no estimate
            figures[name] = _NAN
    status = Status.INDEFINITE if indefinite else Status[row.status]
    reservations = _note(condition_number(found), rest.failure_probability())
    words = [reservations, _WORDS[status] if indefinite else "", SURVEYED]
    return dataclasses.replace(
        row,
        **figures,
        method=f"{found.method} + spectral_density(probes={rest.probes}, steps={rest.steps})",
        matvecs=row.matvecs + int(rest.matvecs),
        status=status.name,
        note="; ".join(filter(None, words)),
    ), known


def _flat(figure: Any) -> np.ndarray:
    return np.ravel(np.asarray(figure, np.float64))


SURVEYED = (
    "lambda_max certified, the rest by quadrature, so that kappa_plus has a lower bound only; "
    "`method=lh.GolubKahan(max_matvecs=...)` seeks the smallest eigenvalue"
)


def without_figures(
    key: Key, *, coupled: bool, note: str, status: Status = Status.CONVERGED, size: int = 0, samples: int = 0
) -> Row:
    """The row of a Hessian that does not exist, or of one that failed."""
    block, wrt, part = key
    return Row(
        block,
        wrt,
        part,
        size,
        samples,
        coupled,
        *(_NAN,) * 8,
        method="",
        matvecs=0,
        converged=status is Status.CONVERGED,
        status=status.name,
        note=note,
    )


def _median(figure: Any, some: np.ndarray) -> float:
    """Over the samples that have a value; NaN where none has."""
    values = np.ravel(np.asarray(figure, np.float64))[some]
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else _NAN


def _worst(statuses: np.ndarray) -> Status:
    present = {int(code) for code in np.ravel(statuses)}
    return next((status for status in _SEVERITY if int(status) in present), Status.CONVERGED)


def _note(kappa: ConditionNumber, others: float = 1.0) -> str:
    """What is missing or doubtful, by status, with the number of samples where there are several.

    `others`: how probable it is that independent starts missed lambda_max too.
    """
    codes = np.ravel(np.asarray(kappa.status))
    words = []
    for status in _SEVERITY:
        count = int((codes == status).sum())
        if count:
            words.append(_WORDS[status] if len(codes) == 1 else f"{count} of {len(codes)} samples: {_WORDS[status]}")
    missed = others * float(np.max(np.asarray(kappa.failure_probability)))
    if missed > LIKELY and not (codes == Status.ZERO).all():
        words.append(f"lambda_max may be missed by a tenth with probability {missed:.2g}")
    return "; ".join(words)


_WORDS = {
    Status.NON_FINITE: "products are not finite (overflow, or a derivative that does not exist at this point)",
    Status.NOT_DETERMINISTIC: "the same product gave two different answers",
    Status.NOT_LINEAR: "the product is not linear",
    Status.NOT_SYMMETRIC: "the product is not symmetric beyond rounding",
    Status.NOT_ADJOINT: "the transposed product is of another matrix beyond rounding",
    Status.NOT_CONFIRMED: "a random vector did not confirm the structure that was found",
    Status.OUT_OF_RANGE: "eigenvalues lie outside the range of the dtype (kappa holds)",
    Status.INDEFINITE: "indefinite: the loss is not convex here, so there is no kappa_plus",
    Status.BUDGET_SPENT: "not converged within the budget of products",
    Status.INVARIANT_SUBSPACE: "multiplicities are not seen",
    Status.RANK_UNCERTAIN: "no clear gap at the rank rule's cutoff",
    Status.ZERO: "no curvature, H = 0",
}
