"""What the command line leaves behind."""

import re
from pathlib import Path

from localhessian._files import write_text
from localhessian.analysis import Label, Report, figure, findings, html, table
from localhessian.lab.comparison import Comparison


def write_reports(reports: dict[Label, Report], out: Path) -> str:
    """Write figure, page and data; table and findings, to be printed."""
    text = str(findings(reports))
    page = _write_files(reports, out)
    written = f"Written: {page}, {out / 'figure.png'}, and the data behind them (*.npz) in {out}/"
    return f"{table(reports)}\n\n{text}\n\n{written}"


def file_of(label: Label, out: Path) -> Path:
    """Where a report lies. A label may be a stranger's: of it only what is no path goes into the name of a file."""
    name = re.sub(r"[^\w-]+", "-", "-".join(filter(None, label))).strip("-") or "report"
    return out / f"{name}.npz"


def _write_files(reports: dict[Label, Report], out: Path) -> Path:
    for place, (label, report) in enumerate(reports.items()):
        report.with_meta(label=list(label), place=place).save(file_of(label, out))
    figure(reports, out / "figure.png")
    return html(reports, out / "report.html")


def write_comparison(result: Comparison, out: Path, data: str) -> str:
    """Write curves and data; the table, to be printed."""
    write_text(out / "table.txt", f"{result}\n")
    write_text(out / "outcomes.csv", result.to_dataframe().to_csv(index=False))
    result.plot(out / "curves.png")
    return f"{data}\n{result}\n\nWritten: table.txt, outcomes.csv, curves.png in {out}/"
