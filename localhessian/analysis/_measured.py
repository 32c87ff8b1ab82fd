"""From a spectrum to a row of a report: medians over the samples that have a value, and what is doubtful in words."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from localhessian._status import Status
from localhessian.analysis._figures import Figures, figures, surveyed_figures, topped_figures
from localhessian.analysis._notes import SHORT, SURVEYED, Blame, nobody, note_of, words_of
from localhessian.analysis._survey import named
from localhessian.analysis.rows import Key, Row, RowSpectrum
from localhessian.linalg import ConditionNumber, Density, Spectrum, TraceEstimate, condition_number

_NAN = float("nan")


def measured(
    key: Key, found: Spectrum, *, samples: int | Sequence[int], coupled: bool, blame: Blame = nobody
) -> tuple[Row, RowSpectrum]:
    """The row of a spectrum, and what stands behind it.

    Args:
        key: (block, wrt, part).
        found: A batched spectrum is of samples, one by one.
        samples: How many entered; of samples one by one, their indices.
        coupled: Whether the block couples them.
        blame: () -> the samples whose loss is not convex, asked where the matrix is indefinite.
    """
    kappa = condition_number(found)
    note = note_of(kappa, key[2], samples, blame)
    row = _row(key, found, figures(found, kappa), samples, coupled, found.method, int(found.matvecs), note)
    return row, _behind(found, kappa)


def surveyed(
    key: Key, found: Spectrum, rest: Density, *, samples: int | Sequence[int], coupled: bool, blame: Blame = nobody
) -> tuple[Row, RowSpectrum]:
    """As `measured`, of a spectrum of which only the largest value was sought, and what a quadrature tells of all."""
    kappa = condition_number(found)
    told = surveyed_figures(found, kappa, rest)
    if np.asarray(rest.status).any() or not told.lambda_max > 0:
        return measured(key, found, samples=samples, coupled=coupled, blame=blame)
    note = note_of(kappa, key[2], samples, blame)
    if int(told.status) != int(Status.INDEFINITE):
        words = SURVEYED.format(found.method.split("(")[0])
    else:  # told by the quadrature alone, or by the smallest value too
        words = "" if np.any(kappa.status == Status.INDEFINITE) else words_of(Status.INDEFINITE, key[2], blame())
    notes = "; ".join(filter(None, (words, note)))
    row = _row(key, found, told, samples, coupled, named(found, rest), int(found.matvecs), notes)
    return row, _behind(found, kappa)


def topped(
    key: Key,
    found: Spectrum,
    total: TraceEstimate,
    *,
    samples: int | Sequence[int],
    coupled: bool,
    blame: Blame = nobody,
) -> tuple[Row, RowSpectrum]:
    """As `measured`, of a spectrum of which a few products told the largest value, and of an estimate of the trace."""
    kappa = condition_number(found)
    # That it has not converged, and may have missed the largest, is what these words say.
    spent = np.asarray(kappa.status) == int(Status.BUDGET_SPENT)
    words = SHORT.format("a lower bound of lambda_max" if spent.any() else "lambda_max")
    others: Any = {"status": np.where(spent, int(Status.CONVERGED), kappa.status)}
    others["failure_probability"] = kappa.failure_probability * (not spent.any())
    rest = note_of(dataclasses.replace(kappa, **others), key[2], samples, blame)
    note = "; ".join(filter(None, (words, rest)))
    told, matvecs = topped_figures(found, kappa, total), int(found.matvecs) + total.probes
    method = f"{found.method} + trace(probes={total.probes})"
    return _row(key, found, told, samples, coupled, method, matvecs, note), _behind(found, kappa)


def _row(
    key: Key,
    found: Spectrum,
    told: Figures,
    samples: int | Sequence[int],
    coupled: bool,
    method: str,
    matvecs: int,
    note: str,
) -> Row:
    block, wrt, part = key
    names = {field.name for field in dataclasses.fields(Row)} - {"status"}
    figures_told: dict[str, Any] = {name: float(value) for name, value in vars(told).items() if name in names}
    return Row(
        block=block,
        wrt=wrt,
        part=part,
        size=found.size,
        samples=samples if isinstance(samples, int) else len(samples),
        coupled=coupled,
        method=method,
        matvecs=matvecs,
        converged=bool(np.asarray(found.converged).all()),
        status=Status(int(told.status)).name,
        note=note,
        **figures_told,
    )


def _behind(found: Spectrum, kappa: ConditionNumber) -> RowSpectrum:
    eigenvalues = np.asarray(found.eigenvalues, np.float64)
    return RowSpectrum(eigenvalues, np.asarray(found.multiplicities), np.asarray(kappa.value))


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
