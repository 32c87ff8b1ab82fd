"""From a spectrum to a row of a report: medians over the samples that have a value, and what is doubtful in words."""

from typing import Any

import numpy as np

from localhessian._status import Status
from localhessian.linalg import ConditionNumber, Spectrum, condition_number, quantile_condition_number
from localhessian.study._row import Key, Row, RowSpectrum

LIKELY = 0.01
"""A probability of having missed lambda_max above this is told."""
_SEVERITY = (
    Status.NON_FINITE,
    Status.NOT_DETERMINISTIC,
    Status.NOT_LINEAR,
    Status.NOT_SYMMETRIC,
    Status.NOT_ADJOINT,
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
    block, wrt, part = key
    row = Row(
        block=block,
        wrt=wrt,  # type: ignore[arg-type]  # a key of a report holds strings
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
        kappa_q05=median(quantile_condition_number(found, 0.05)),
        kappa_q95=median(quantile_condition_number(found, 0.95)),
        method=found.method,
        matvecs=int(found.matvecs),
        converged=bool(np.all(found.converged)),
        status=_worst(np.asarray(kappa.status)[some.reshape(np.shape(kappa.status))]).name,
        note=_note(kappa),
    )
    eigenvalues = np.asarray(found.eigenvalues, np.float64)
    return row, RowSpectrum(eigenvalues, np.asarray(found.multiplicities), np.asarray(kappa.value))


def without_figures(
    key: Key, *, coupled: bool, note: str, status: Status = Status.CONVERGED, size: int = 0, samples: int = 0
) -> Row:
    """The row of a Hessian that does not exist, or of one that failed."""
    block, wrt, part = key
    return Row(
        block,
        wrt,  # type: ignore[arg-type]
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


def _note(kappa: ConditionNumber) -> str:
    """What is missing or doubtful, by status, with the number of samples where there are several."""
    codes = np.ravel(np.asarray(kappa.status))
    words = []
    for status in _SEVERITY:
        count = int((codes == status).sum())
        if count:
            words.append(_WORDS[status] if len(codes) == 1 else f"{count} of {len(codes)} samples: {_WORDS[status]}")
    missed = float(np.max(np.asarray(kappa.failure_probability)))
    if missed > LIKELY and not (codes == Status.ZERO).all():
        words.append(f"lambda_max may be missed by a tenth with probability {missed:.2g}")
    return "; ".join(words)


_WORDS = {
    Status.NON_FINITE: "products are not finite (overflow, or a derivative that does not exist at this point)",
    Status.NOT_DETERMINISTIC: "the same product gave two different answers",
    Status.NOT_LINEAR: "the product is not linear",
    Status.NOT_SYMMETRIC: "the product is not symmetric beyond rounding",
    Status.NOT_ADJOINT: "the transposed product is of another matrix beyond rounding",
    Status.OUT_OF_RANGE: "eigenvalues lie outside the range of the dtype (kappa holds)",
    Status.INDEFINITE: "indefinite: the loss is not convex here, so there is no kappa_plus",
    Status.BUDGET_SPENT: "not converged within the budget of products",
    Status.INVARIANT_SUBSPACE: "multiplicities are not seen",
    Status.RANK_UNCERTAIN: "no clear gap at the rank rule's cutoff",
    Status.ZERO: "no curvature, H = 0",
}
