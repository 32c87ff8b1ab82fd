"""Reports as text in columns."""

import io
import math

from localhessian._optional import optional
from localhessian.analysis._label import Labeled, labeled
from localhessian.analysis._row import COLUMNS, Analyzed, Row

LEGEND = """\
Of an uncoupled H_z every figure is the median over its samples. kappa_plus = lambda_max / lambda_min_nonzero lies
between kappa_lower and kappa_upper; kappa_q05 = lambda_max / 5 % quantile of the non-zero eigenvalues.
?: no clear gap at the rank rule's cutoff.   -: unknown, or does not exist."""
_TEXT = ("block", "wrt", "part", "coupled", "method", "converged")
_ERRORS = {"trace_error", "kappa_q05_lower", "kappa_q05_upper", "kappa_q95_lower", "kappa_q95_upper"}
SHOWN = tuple(column for column in COLUMNS if column not in {"status", "note", *_ERRORS})
"""What stands in columns; status and note follow in words, errors in the cells that they belong to."""


def table(reports: Labeled[Analyzed]) -> str:
    """The rows of one or several reports in the fixed columns, a section for each report.

    Args:
        reports: By the name of a network, or by (network, stage); an empty name shows none.
    """
    reports = labeled(reports)
    grid = optional("rich.table").Table(box=optional("rich.box").SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in SHOWN:
        grid.add_column(column.replace("_", "\n"), justify="left" if column in _TEXT else "right", no_wrap=True)
    headings = {f"@{i}": str(label) for i, label in enumerate(reports)}
    for heading, report in zip(headings, reports.values(), strict=True):
        grid.add_section()
        if headings[heading]:
            grid.add_row(heading)
        for row in report.rows:
            grid.add_row(*(cell(row, column) for column in SHOWN))
    out = io.StringIO()
    optional("rich.console").Console(file=out, width=400).print(grid)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    # A heading is wider than its column, so it is put in afterwards.
    lines = [f" {headings[line.strip()]}" if line.strip() in headings else line for line in lines]
    return "\n".join([*"\n".join(lines).strip("\n").split("\n"), *notes(reports), LEGEND])


def notes(reports: Labeled[Analyzed]) -> list[str]:
    """Why figures are missing or doubtful: a line for each reason, with the rows that have it."""
    where: dict[str, list[str]] = {}
    for label, report in labeled(reports).items():
        for row in report.rows:
            if row.note:
                where.setdefault(row.note, []).append(" / ".join(filter(None, (str(label), row.block, row.wrt))))
    return [f"{note}: {', '.join(rows)}" for note, rows in where.items()]


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


def number(value: float) -> str:
    """Three digits: 0.0123, 12.3, 1,230, 1.2e+08."""
    if math.isnan(value):
        return "-"
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    if float(value).is_integer() and abs(value) < 1e5:
        return f"{int(value)}"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"
