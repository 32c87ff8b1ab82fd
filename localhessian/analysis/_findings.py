"""One paragraph on what the numbers of several reports show, computed from them."""

from collections.abc import Mapping, Sequence

import numpy as np

from localhessian import _arguments
from localhessian.analysis._label import Label, Labeled, labeled
from localhessian.analysis._row import Analyzed, Row
from localhessian.analysis._table import number

_SYMBOLS = {"params": "H_W", "input": "H_z"}


def findings(reports: Labeled[Analyzed]) -> str:
    """What the reports show, and what they do not.

    Args:
        reports: By the name of a network, or by (network, stage); `meta["accuracy"]` is told where there is one.

    Returns:
        Sentences: medians over the blocks by model, side and stage; how much of the space kappa_plus speaks of; which
        model the robust figure prefers; every reservation that the rows carry.
    """
    reports = labeled(reports)
    sentences = [_broken(reports), *(_medians(reports, wrt) for wrt in ("params", "input"))]
    sentences += [_shares(reports), *(_best(reports, wrt) for wrt in ("params", "input"))]
    sentences += [_reservations(reports), _limits(reports)]
    return " ".join(sentence for sentence in sentences if sentence)


def _rows(report: Analyzed, wrt: str) -> list[Row]:
    return [row for row in report.rows if row.wrt == wrt and row.has_figures]


def _broken(reports: Mapping[Label, Analyzed]) -> str:
    """What makes the other numbers doubtful, or worthless, comes first."""
    parts = []
    for statuses, words in _BROKEN:
        for label, report in reports.items():
            blocks = list(dict.fromkeys(row.block for row in report.rows if row.status in statuses))
            if blocks:
                where = f" of {label}" if label.network else ""
                parts.append(f"{', '.join(f'`{block}`' for block in blocks)}{where} {words}")
    return f"First: {'; '.join(parts)}." if parts else ""


_BROKEN = (
    (("NON_FINITE", "OUT_OF_RANGE"), "left the range of its numbers (it has diverged, or has no derivative here)"),
    (
        ("FAILED", "NOT_SYMMETRIC", "NOT_DETERMINISTIC", "NOT_ADJOINT", "NOT_LINEAR", "NOT_CONFIRMED"),
        "could not be analyzed",
    ),
    (("ZERO",), "has no curvature at all (dead units, or samples without a loss)"),
    (("INDEFINITE",), "is indefinite, so that it has no kappa_plus"),
)
"""Statuses, and what is said of the blocks that have them."""


def _median(rows: Sequence[Row], column: str) -> float:
    values = np.array([getattr(row, column) for row in rows], float)
    return float(np.nanmedian(values)) if np.any(np.isfinite(values)) else float("nan")


def _by_model(reports: Mapping[Label, Analyzed]) -> dict[str, dict[str, Analyzed]]:
    models: dict[str, dict[str, Analyzed]] = {}
    for label, report in reports.items():
        models.setdefault(label.network, {})[label.stage] = report
    return models


def _medians(reports: Mapping[Label, Analyzed], wrt: str) -> str:
    parts = []
    for model, stages in _by_model(reports).items():
        values = [
            f"{number(_median(_rows(report, wrt), 'kappa_plus'))}{f' {stage}' if stage else ''}"
            for stage, report in stages.items()
            if _rows(report, wrt)
        ]
        if values:
            parts.append(f"{model or 'the network'} {', '.join(values)}")
    return f"Median over the blocks of kappa_plus({_SYMBOLS[wrt]}): {'; '.join(parts)}." if parts else ""


def _shares(reports: Mapping[Label, Analyzed]) -> str:
    """kappa_plus leaves zero directions out, so it must be read with the share that is left."""
    parts = []
    for model, stages in _by_model(reports).items():
        rows = [row for row in _rows(list(stages.values())[-1], "input") if row.size]
        if rows:
            share = float(np.median([row.rank / row.size for row in rows]))
            parts.append(f"{model or 'the network'} {100 * share:.0f} %")
    if not parts:
        return ""
    return (
        f"That speaks of the non-zero directions only, which in H_z are, as the median over the blocks, of "
        f"{', '.join(parts)}: a small kappa_plus on a small share means that the rest of the signal is lost, not that "
        "it is well conditioned."
    )


def _best(reports: Mapping[Label, Analyzed], wrt: str) -> str:
    last = {model: list(stages.values())[-1] for model, stages in _by_model(reports).items()}
    values = {model: _median(_rows(report, wrt), "kappa_q05") for model, report in last.items()}
    values = {model: value for model, value in values.items() if np.isfinite(value)}
    if len(values) < 2:
        return ""
    ranked = sorted(values, key=values.__getitem__)
    factor = values[ranked[-1]] / values[ranked[0]]
    figures = ", ".join(f"{model} {number(values[model])}" for model in ranked)
    if factor < 2:
        return f"By the robust figure lambda_max/lambda_5% of {_SYMBOLS[wrt]} the networks hardly differ ({figures})."
    return (
        f"By the robust figure lambda_max/lambda_5% of {_SYMBOLS[wrt]}, {ranked[0]} is the best conditioned "
        f"({figures})."
    )


def _reservations(reports: Mapping[Label, Analyzed]) -> str:
    rows = [row for report in reports.values() for row in report.rows if row.has_figures]
    if not rows:
        return "There is no spectrum to speak of."
    uncertain = sum(row.status == "RANK_UNCERTAIN" for row in rows)
    unknown = sum(bool(np.isnan(row.kappa_plus)) and np.isfinite(row.kappa_lower) for row in rows)
    unconverged = sum(not row.converged for row in rows)
    parts = []
    if uncertain:
        parts.append(f"{uncertain} of {len(rows)} kappa_plus (marked ?) hang on where the rank rule cuts")
    if unknown:
        parts.append(f"{unknown} are known as lower bounds only")
    if unconverged:
        parts.append(f"{unconverged} spectra did not converge")
    worse = sum(row.status not in {"CONVERGED", "RANK_UNCERTAIN"} and row.converged for row in rows)
    if worse:
        parts.append(f"{worse} have another reservation, told in their notes")
    if parts:
        return f"Of these numbers {', and '.join(parts)}."
    return f"All {len(rows)} spectra are complete, and each has a clear gap at the rank rule's cutoff."


def _limits(reports: Mapping[Label, Analyzed]) -> str:
    # `meta` may hold what its reader likes, under these names too.
    batch = max((_arguments.number(report.meta.get("batch"), "iu") or 0 for report in reports.values()), default=0)
    accuracies = {
        label.network: accuracy
        for label, report in reports.items()
        if (accuracy := _arguments.number(report.meta.get("accuracy"))) is not None
    }
    trained = ", ".join(f"{model} {100 * accuracy:.1f} %" for model, accuracy in accuracies.items())
    trained = f" (test accuracy after training: {trained})" if trained else ""
    return (
        f"This is one random seed and one batch of {batch:.0f} samples{trained}: an observation. Whether better "
        "conditioned blocks train faster takes many seeds and tuned learning rates, and is not shown here."
    )
