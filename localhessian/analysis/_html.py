"""Reports as one page that opens without a network."""

from pathlib import Path

from localhessian._files import write_text
from localhessian._optional import optional
from localhessian.analysis._page import cards, cells, columns, drawn, prefix
from localhessian.analysis._table import legend
from localhessian.analysis.rows import Analyzed, Labeled, labeled


def html(reports: Labeled[Analyzed], path: str | Path, *, title: str = "Local Hessians", text: str = "") -> Path:
    """Write the page: findings, figures along depth, tables whose rows open, what each column means.

    Tables, small spectra and findings are there without JavaScript; with it they sort, filter and open, reports stand
    side by side, and points of figures tell what they are. Nothing is loaded, and names are text, never markup.

    Args:
        reports: By the name of a network, or by (network, stage).
        path: The file.
        title: Of the page.
        text: A paragraph above the findings.

    Returns:
        The path.

    Raises:
        ImportError: jinja2 is not installed.
    """
    reports = labeled(reports)
    jinja2 = optional("jinja2")
    loader = jinja2.PackageLoader("localhessian.analysis")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html.j2").render(
        title=title,
        text=text,
        cards=cards(reports),
        columns=columns(),
        legend=legend(reports)[2:],
        sections=[
            (str(label), report.meta, [(row, cells(report, row), prefix(report)) for row in report.rows])
            for label, report in reports.items()
        ],
        data=drawn(reports),
    )
    path = Path(path)
    write_text(path, page)
    return path
