"""Reports as text in columns."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from localhessian._grid import grid
from localhessian.analysis.rows import COLUMNS, INTERVALS, Analyzed, Label, Labeled, Row, apart, labeled, shortened

WIDTH = 100
"""Of the narrow table, in characters."""
NAME = 24
"""Of a block's name there."""
DIGITS = 3
NARROW = ("block", "side", "rank/size", "kappa_plus", "kappa_q05", "", "note")
_ERRORS = {"trace_error", "kappa_q05_lower", "kappa_q05_upper", "kappa_q95_lower", "kappa_q95_upper"}
WIDE = tuple(column for column in COLUMNS[: COLUMNS.index("top_on_mean")] if column not in {"status", "note", *_ERRORS})
"""What stands in columns; status and note follow in words, errors in the cells that they belong to."""
_LEFT = {"block", "side", "wrt", "part", "coupled", "method", "converged", "kappa_plus", "", "note"}
LEGEND = (
    "kappa_plus: largest / smallest non-zero eigenvalue, in [its interval] where that is wider than 1 %",
    "kappa_q05: largest / 5 % quantile of the non-zero ones.   Of an uncoupled H_z: medians over samples",
)
_MARKS = {
    "RANK_UNCERTAIN": ("?", "no clear gap at the rank cutoff"),
    "INDEFINITE": ("±", "indefinite"),
    "ZERO": ("0", "no curvature"),
    "BUDGET_SPENT": ("~", "not converged"),
    "INTERRUPTED": ("~", "not converged"),
    "INVARIANT_SUBSPACE": ("~", "not converged"),
}
_BROKEN = ("!", "no figures can be had, or they mean nothing")


def table(reports: Labeled[Analyzed], *, wide: bool = False) -> str:
    """The rows of one or several reports, a section for each report, notes and a legend beneath.

    Args:
        reports: By the name of a network, or by (network, stage); an empty name shows none.
        wide: All columns, some 190 characters; else those that matter, in 100.
    """
    reports = labeled(reports)
    if wide:
        columns = {c.replace("_", "\n"): _side(c, wide=True) for c in WIDE}
        sections = [(str(label), [[cell(row, c) for c in WIDE] for row in r.rows]) for label, r in reports.items()]
        return "\n".join([*grid(columns, sections), *notes(reports), *legend(reports)])
    blocks = list(dict.fromkeys(row.block for report in reports.values() for row in report.rows))
    names = dict(zip(blocks, apart(blocks, NAME), strict=True))
    cells = {label: [[names[row.block], *narrow(row)[1:]] for row in report.rows] for label, report in reports.items()}
    room = max(12, _room([row for rows in cells.values() for row in rows]))
    sections = [(str(label), [[*row[:-1], shortened(row[-1], room)] for row in rows]) for label, rows in cells.items()]
    lines = grid({column: _side(column) for column in NARROW}, sections)
    return "\n".join([*lines, *notes(reports, longer=room), *legend(reports)])


def narrow(row: Row) -> list[str]:
    """The cells of the columns that matter."""
    part = "" if row.part == "gauss_newton" else f" {row.part}"
    extent = f"{'' if row.is_whole else '≥ '}{number(row.rank)}/{row.size}" if row.has_figures else "-"
    cells = [row.block, f"{row.symbol}{part}", extent, within(row, "kappa_plus")]
    cells += [within(row, "kappa_q05"), mark(row), row.note]
    return [cell.replace("\n", " ") for cell in cells]


def within(row: Row, column: str) -> str:
    """A condition number, with its interval where that is wider than 1 %; a bound where it is all that is known."""
    value, lower, upper = (getattr(row, name) for name in (column, *INTERVALS[column]))
    if math.isnan(value):
        return f"≥ {number(lower, 2)}" if math.isfinite(lower) else "-"
    if math.isnan(lower) or upper <= 1.01 * lower:
        return number(value)
    ends = next((n for n in ((number(lower, d), number(upper, d)) for d in (2, DIGITS)) if n[0] != n[1]), ("", ""))
    return f"{number(value)} [{', '.join(ends)}]"


def mark(row: Row) -> str:
    """One character for how the computation ended; none where it converged."""
    return "" if row.status == "CONVERGED" else _MARKS.get(row.status, _BROKEN)[0]


def _room(rows: Sequence[Sequence[str]]) -> int:
    """Characters that are left for notes."""
    widths = [max(map(len, column)) for column in zip(NARROW, *rows, strict=True)][:-1]
    return WIDTH - 2 - sum(width + 2 for width in widths)


def _side(column: str, *, wide: bool = False) -> str:
    return "left" if column in _LEFT and not (wide and column == "kappa_plus") else "right"


def legend(reports: Mapping[Label, Analyzed]) -> list[str]:
    """What columns mean, and the marks that occur."""
    statuses = dict.fromkeys(row.status for report in reports.values() for row in report.rows)
    marks = dict(_MARKS.get(status, _BROKEN) for status in statuses if status != "CONVERGED")
    words = "   ".join(f"{mark} {meaning}" for mark, meaning in marks.items())
    return [*LEGEND, *([words] if words else [])]


def notes(reports: Labeled[Analyzed], *, longer: int = 0) -> list[str]:
    """Why figures are missing or doubtful: a line for each reason of more characters, with the rows that have it."""
    where: dict[str, list[str]] = {}
    for label, report in labeled(reports).items():
        for row in report.rows:
            if len(row.note) > longer:
                where.setdefault(row.note, []).append(
                    f"{row.block} {row.symbol}" + (f" of {label}" if any(label) else "")
                )
    return [f"{_listed(rows)}: {note}" for note, rows in where.items()]


def _listed(rows: Iterable[str], most: int = 6) -> str:
    rows = list(rows)
    return ", ".join(rows if len(rows) <= most else [*rows[: most - 1], f"and {len(rows) - most + 1} more"])


def cell(row: Row, column: str) -> str:
    """One figure for a person: three digits, `-` where there is none."""
    value = getattr(row, column)
    if column == "kappa_plus" and row.status == "RANK_UNCERTAIN":
        return number(value) + "?"
    if column == "method":
        return " + ".join(_SHORT.get(part.split("(")[0], part.split("(")[0]) for part in value.split(" + "))
    if column in {"kappa_q05", "kappa_q95"}:
        lower, upper = getattr(row, f"{column}_lower"), getattr(row, f"{column}_upper")
        is_exact = math.isnan(lower) or lower == upper
        return number(value) if is_exact else f"{number(value)} [{number(lower)}, {number(upper)}]"
    if column == "trace" and row.trace_error > 0:
        return f"{number(value)} ± {number(row.trace_error)}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else number(value)


_SHORT = {"spectral_density": "density"}


def number(value: float, digits: int = DIGITS) -> str:
    """Three digits: 0.0123, 12.3, 1230, 1.23e8."""
    if math.isnan(value):
        return "-"
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    if (float(value).is_integer() and abs(value) < 1e5 and digits == DIGITS) or 1e-3 <= abs(value) < 1e4:
        precision = max(digits, len(str(int(abs(value))))) if digits == DIGITS else digits
        return np.format_float_positional(value, precision=precision, unique=False, fractional=False, trim="-")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
