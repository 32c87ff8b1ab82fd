"""Reports as one page that opens without a network."""

import importlib.resources
import io
import re
from pathlib import Path

from localhessian._files import write_text
from localhessian._optional import optional
from localhessian.analysis._table import WIDE, cell, notes
from localhessian.analysis.plot import figure
from localhessian.analysis.rows import Analyzed, Labeled, labeled
from localhessian.linalg import RANK_RULE

MEANINGS = {
    "block": "name of the block",
    "wrt": "params: H_W, by the parameters; input: H_z, by the activations that enter",
    "part": "gauss_newton (positive semi-definite), full, or residual",
    "size": "order of the matrix; of an uncoupled H_z, of each sample's",
    "samples": "samples that entered; of an uncoupled H_z, those analyzed one by one",
    "coupled": "whether the block mixes the samples of the batch (batch normalization)",
    "rank": f"eigenvalues above the cutoff of the rank rule, {RANK_RULE}; by a quadrature: at least",
    "lambda_max": "largest eigenvalue",
    "lambda_min_nonzero": "smallest eigenvalue above the cutoff",
    "kappa_plus": "lambda_max / lambda_min_nonzero; ? where no clear gap separates zero from non-zero",
    "kappa_lower": "certified lower bound of kappa_plus",
    "kappa_upper": "upper bound of kappa_plus; inf unless every eigenvalue is known",
    "kappa_q05": "lambda_max over the 5 % quantile of the non-zero eigenvalues",
    "kappa_q95": "lambda_max over their 95 % quantile",
    "method": "how the eigenvalues were computed",
    "matvecs": "products with the operator",
    "converged": "whether every value met its tolerance",
    "status": "how the computation ended",
    "note": "why a figure is missing or doubtful",
    "trace": "sum of the eigenvalues, with its standard error where it is an estimate",
    "effective_rank": "trace / lambda_max",
}


def html(reports: Labeled[Analyzed], path: str | Path, *, title: str = "Local Hessians", text: str = "") -> Path:
    """Write the page: text, figure, tables, what each column means, and where the numbers come from.

    Args:
        reports: By the name of a network, or by (network, stage).
        path: The file.
        title: Of the page.
        text: A paragraph above the figure.

    Returns:
        The path.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
    """
    reports = labeled(reports)
    template = (importlib.resources.files("localhessian.analysis") / "templates" / "report.html.j2").read_text("utf-8")
    environment = optional("jinja2").Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        title=title,
        text=text,
        svg=_svg(reports),
        columns=WIDE,
        meanings=MEANINGS,
        sections=[
            (str(label), report.meta, [[cell(row, c) for c in WIDE] for row in report.rows])
            for label, report in reports.items()
        ],
        notes=notes(reports),
    )
    path = Path(path)
    write_text(path, page)
    return path


def _svg(reports: Labeled[Analyzed]) -> str:
    out = io.StringIO()
    figure(reports).savefig(out, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", out.getvalue(), flags=re.DOTALL)
