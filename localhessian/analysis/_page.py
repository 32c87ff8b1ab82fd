"""What a page shows of reports, as plain data: columns, cells, what the script draws, findings with their rows."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from localhessian.analysis._findings import findings
from localhessian.analysis._sparkline import sparkline, thinned
from localhessian.analysis._table import cell, mark, narrow
from localhessian.analysis.rows import COLUMNS, INTERVALS, Analyzed, Label, Labeled, Row, distinct, fitted
from localhessian.linalg import RANK_RULE

POINTS = 120
"""Of a spectrum that is drawn large."""
TICK = 16
"""Characters of a block's name at a tick."""
METRICS = ("kappa_plus", "kappa_q05", "kappa_q95", "lambda_max", "trace", "effective_rank", "share")
"""What can be drawn along depth."""
MEANINGS = {
    "block": "name of the block",
    "side": "H_W, by the parameters, or H_z, by the activations that enter; a part other than gauss_newton is named",
    "kappa_plus": "lambda_max / lambda_min_nonzero, in [its interval] where that is wider than 1 %; ≥ a lower bound",
    "kappa_q05": "lambda_max over the 5 % quantile of the non-zero eigenvalues",
    "spectrum": "eigenvalues over the largest, twelve decades, by their share of the dimension",
    "rank/size": f"eigenvalues above the cutoff of the rank rule, {RANK_RULE}, and the order of the matrix "
    "(of an uncoupled H_z, of each sample's); ≥ by a quadrature",
    "mark": "how the computation ended, where it did not converge",
    "note": "why a figure is missing or doubtful",
    "samples": "samples that entered; of an uncoupled H_z, those analyzed one by one",
    "coupled": "whether the block mixes the samples of the batch (batch normalization)",
    "lambda_max": "largest eigenvalue",
    "lambda_min_nonzero": "smallest eigenvalue above the cutoff",
    "kappa_lower": "certified lower bound of kappa_plus",
    "kappa_upper": "upper bound of kappa_plus; inf unless every eigenvalue is known",
    "kappa_q95": "lambda_max over the 95 % quantile",
    "method": "the route: how the eigenvalues were computed",
    "matvecs": "products with the operator",
    "converged": "whether every value met its tolerance",
    "status": "how the computation ended",
    "trace": "sum of the eigenvalues, with its standard error where it is an estimate",
    "effective_rank": "trace / lambda_max",
    "top_on_mean": "how much of the top eigenvector lies along the mean of the layer's input",
    "top_channel": "the output channel, or class, that has most of the top eigenvector",
    "top_channel_share": "how much it has",
    "kappa_inputs": "condition number of the second moments of the layer's inputs",
    "kappa_centered": "the same without their mean",
    "kappa_scaled": "the same with every input divided by its root mean square",
    "gradient_top": "share of the squared gradient above a tenth of lambda_max",
    "gradient_bottom": "share of the squared gradient below a thousandth of lambda_max",
}
"""Columns in their order, and what they mean."""
_ALWAYS = tuple(MEANINGS)[: tuple(MEANINGS).index("samples")]
_ROOM = {"kappa_q05": "medium", "spectrum": "large", "rank/size": "large", "note": "large"}
"""Columns that small screens leave to the details of a row."""


class Column(NamedTuple):
    """Of the tables of a page."""

    name: str
    meaning: str
    room: str
    """What it needs: a class of the style sheet; `extra` for what is shown when it is asked for."""


class Card(NamedTuple):
    """A finding, and the names of the rows that it speaks of."""

    text: str
    rows: tuple[str, ...]


def columns() -> list[Column]:
    """Of every table."""
    rooms = {name: _ROOM.get(name, "" if name in _ALWAYS else "extra") for name in MEANINGS}
    return [Column(name, meaning, rooms[name]) for name, meaning in MEANINGS.items()]


def cells(report: Analyzed, row: Row) -> dict[str, str]:
    """By the name of the column, as text; the spectrum is SVG."""
    _, side, extent, plus, robust, _, note = narrow(row)
    told = {"block": row.block, "side": side, "kappa_plus": plus, "kappa_q05": robust, "rank/size": extent}
    told |= {"spectrum": sparkline(report, row), "mark": mark(row), "note": note}
    told |= {} if row.top_channel >= 0 else {"top_channel": "-"}
    return {name: told[name] if name in told else cell(row, name) for name in MEANINGS}


def prefix(report: Analyzed) -> str:
    """What the names of all blocks begin with: small screens leave it out."""
    names = [row.block for row in report.rows]
    return names[0][: len(names[0]) - len(distinct(names, len(names[0]))[0])] if names else ""


def row_name(i: int, j: int) -> str:
    """Of a row on the page."""
    return f"r{i}-{j}"


def cards(reports: dict[Label, Analyzed]) -> list[Card]:
    """The findings."""
    where = {
        (label, row.key): row_name(i, j)
        for i, (label, report) in enumerate(reports.items())
        for j, row in enumerate(report.rows)
    }
    return [
        Card(finding.text, tuple(where[row] for row in finding.rows if row in where)) for finding in findings(reports)
    ]


def drawn(reports: Labeled[Analyzed]) -> dict[str, Any]:
    """What the script of the page draws and sorts by; numbers may be NaN and Infinity, as JavaScript writes them."""
    networks = list(dict.fromkeys(label.network for label in reports))
    last = {label.network: label for label in reports}
    return {
        "metrics": METRICS,
        "intervals": INTERVALS,
        "reports": [
            {
                "label": str(label) or "all blocks",
                "color": networks.index(label.network),
                "isLast": last[label.network] == label,
                "rows": list(_rows(i, report)),
            }
            for i, (label, report) in enumerate(reports.items())
        ],
    }


def _rows(i: int, report: Analyzed) -> Iterator[dict[str, Any]]:
    ticks = [fitted(name, TICK) for name in distinct([row.block for row in report.rows], TICK)]
    for j, (row, tick) in enumerate(zip(report.rows, ticks, strict=True)):
        share, values = thinned(report, row, POINTS)
        yield {
            "id": row_name(i, j),
            "block": row.block,
            "tick": tick,
            "side": narrow(row)[1],
            "status": row.status,
            "note": row.note,
            "figures": _figures(row),
            "curve": [share.round(5).tolist(), values.round(3).tolist()],
        }


def _figures(row: Row) -> dict[str, float]:
    """Every number of the row."""
    numbers = {name: getattr(row, name) for name in COLUMNS}
    numbers["share"] = row.rank / row.size if row.size else np.nan
    numbers["top_channel"] = row.top_channel if row.top_channel >= 0 else np.nan
    return {name: float(value) for name, value in numbers.items() if not isinstance(value, str | bool)}
