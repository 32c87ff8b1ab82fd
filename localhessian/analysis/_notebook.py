"""Reports in a notebook: a table with a small spectrum in each row, the figure beside it; HTML without scripts."""

import base64
import contextlib
import html
import re
from collections.abc import Iterable, Sequence

from localhessian.analysis._findings import findings
from localhessian.analysis._sparkline import sparkline
from localhessian.analysis._table import NARROW, WIDE, cell, narrow
from localhessian.analysis.plot import figure, png
from localhessian.analysis.rows import Analyzed

_STYLE = """\
<style>
.localhessian { display: flex; flex-wrap: wrap; gap: 1em 2em; align-items: flex-start; }
.localhessian table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.localhessian td, .localhessian th { text-align: right; padding: .15em .6em; white-space: nowrap; }
.localhessian td.words, .localhessian th.words { text-align: left; }
.localhessian td.note { text-align: left; white-space: normal; min-width: 14em; max-width: 32em; }
.localhessian .figure { flex: 1 1 28em; max-width: 70em; }
.localhessian ul { max-width: 60em; padding-left: 1.4em; }
.localhessian img { width: 100%; background: white; }
</style>"""
_NAME = re.compile("`([^`]*)`")
_WORDS = {"block", "side", "wrt", "part", "method", "coupled", "converged", "", "note", "spectrum"}


def notebook_html(report: Analyzed, title: str) -> str:
    """What Jupyter shows of a report; every word of it is escaped."""
    columns = (*NARROW[:5], "spectrum", *NARROW[5:])
    rows = []
    for row in report.rows:
        cells = list(map(html.escape, narrow(row)))
        rows.append([html.escape(row.block), *cells[1:5], sparkline(report, row), *cells[5:]])
    everything = [[html.escape(cell(row, column)) for column in WIDE] for row in report.rows]
    sentences = (_NAME.sub(r"<code>\1</code>", html.escape(str(finding))) for finding in findings({"": report}))
    told = "".join(f"<li>{sentence}</li>" for sentence in sentences)
    return (
        f'{_STYLE}<div class="localhessian"><div><p>{html.escape(title)}</p>{_table(columns, rows)}'
        f"<details><summary>All columns</summary>{_table(WIDE, everything)}</details></div>{_figure(report)}"
        f"<details open><summary>Findings</summary><ul>{told}</ul></details></div>"
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of cells that are HTML."""
    kinds = ["note" if column == "note" else "words" if column in _WORDS else "" for column in columns]
    head = "".join(
        f'<th class="{"words" if kind else ""}">{column}</th>' for column, kind in zip(columns, kinds, strict=True)
    )
    lines = ("".join(f'<td class="{kind}">{cell}</td>' for cell, kind in zip(row, kinds, strict=True)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figure(report: Analyzed) -> str:
    """The picture, to be folded away; nothing where matplotlib is not installed."""
    with contextlib.suppress(ImportError):
        picture = base64.b64encode(png(figure({"": report}))).decode()
        image = f'<img src="data:image/png;base64,{picture}"/>'
        return f'<details open class="figure"><summary>Figure</summary>{image}</details>'
    return ""
