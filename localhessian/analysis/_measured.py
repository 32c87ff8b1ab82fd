"""From a spectrum to a row of a report: medians over the samples that have a value, and what is doubtful in words."""

import dataclasses

import numpy as np

from localhessian._status import Status
from localhessian.analysis._figures import SEVERITY, Figures, figures, surveyed_figures
from localhessian.analysis._row import Key, Row, RowSpectrum
from localhessian.analysis._survey import named
from localhessian.linalg import ConditionNumber, Density, Spectrum, condition_number

LIKELY = 0.01
"""A probability of having missed lambda_max above this is told."""
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
    told = figures(found, kappa)
    row = _row(key, found, told, samples, coupled, found.method, int(found.matvecs), _note(kappa))
    return row, _behind(found, kappa)


def surveyed(key: Key, found: Spectrum, rest: Density, *, samples: int, coupled: bool) -> tuple[Row, RowSpectrum]:
    """As `measured`, of a spectrum of which only the largest value was sought, and what a quadrature tells of all."""
    kappa = condition_number(found)
    told = surveyed_figures(found, kappa, rest)
    if np.any(rest.status) or not told.lambda_max > 0:
        return measured(key, found, samples=samples, coupled=coupled)
    indefinite = int(told.status) == Status.INDEFINITE
    words = [_note(kappa, rest.failure_probability()), _WORDS[Status.INDEFINITE] if indefinite else "", SURVEYED]
    matvecs = int(found.matvecs) + int(rest.matvecs)
    row = _row(key, found, told, samples, coupled, named(found, rest), matvecs, "; ".join(filter(None, words)))
    return row, _behind(found, kappa)


def _row(
    key: Key, found: Spectrum, told: Figures, samples: int, coupled: bool, method: str, matvecs: int, note: str
) -> Row:
    block, wrt, part = key
    names = {field.name for field in dataclasses.fields(Row)} - {"status"}
    return Row(
        block=block,
        wrt=wrt,
        part=part,
        size=found.size,
        samples=samples,
        coupled=coupled,
        method=method,
        matvecs=matvecs,
        converged=bool(np.all(found.converged)),
        status=Status(int(told.status)).name,
        note=note,
        **{name: float(value) for name, value in vars(told).items() if name in names},
    )


def _behind(found: Spectrum, kappa: ConditionNumber) -> RowSpectrum:
    eigenvalues = np.asarray(found.eigenvalues, np.float64)
    return RowSpectrum(eigenvalues, np.asarray(found.multiplicities), np.asarray(kappa.value))


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


def _note(kappa: ConditionNumber, others: float = 1.0) -> str:
    """What is missing or doubtful, by status, with the number of samples where there are several.

    `others`: how probable it is that independent starts missed lambda_max too.
    """
    codes = np.ravel(np.asarray(kappa.status))
    words = []
    for status in SEVERITY:
        count = int((codes == status).sum())
        if count and status is not Status.CONVERGED:
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
