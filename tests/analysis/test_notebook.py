"""What a notebook shows: executed in a fresh kernel, looked at by what it saved."""

import base64
import re

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.once

CELLS = {
    "import": "import jax.numpy as jnp\nimport localhessian as lh\nfrom localhessian.lab import Comparison, Plan",
    "analyze": (
        "chain = lh.Chain([lh.Block('<b>a', lambda w, z: jnp.tanh(z @ w)), lh.Block('b', lambda w, z: z @ w)])\n"
        "params = {'<b>a': jnp.array([[1.0, 0.2], [0.0, 3.0]]), 'b': jnp.ones((2, 1))}\n"
        "x, y = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.zeros((2, 1))\n"
        "report = lh.analyze(chain, params, x, y, lambda z, y: ((z - y) ** 2).sum(1), method=lh.Dense(), progress=True)"
    ),
    "print": "print(report)",
    "text": "report.table() == str(report), len(report.table()) > 500, len(Comparison((), Plan(), {}).table()) > 300",
    "report": "report",
    "figure": "report.plot()",
    "panel": "lh.plot.depth(report)",
    "repr": "print(repr(report))",
}


@pytest.fixture(scope="module")
def outputs():
    """By the name of the cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS.values()])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return {name: cell.outputs for name, cell in zip(CELLS, notebook.cells, strict=True)}


def test_text_is_text(outputs):
    (printed,) = outputs["print"]
    assert (printed.output_type, printed.name) == ("stream", "stdout")
    assert "kappa_plus" in printed.text
    (answers,) = outputs["text"]
    assert answers.data["text/plain"] == "(True, True, True)"
    assert len(outputs["repr"][0].text.splitlines()) <= 5


def test_progress_is_one_bar_and_nothing_is_red(outputs):
    assert not [o for cell in outputs.values() for o in cell if o.get("name") == "stderr" or o.output_type == "error"]
    (bar,) = outputs["analyze"]
    assert bar.data["text/html"] == '<progress value="4" max="4"></progress> 4/4 spectrum done'
    assert outputs["import"] == []


def test_a_report_is_a_table_with_spectra_and_its_figure(outputs):
    (shown,) = outputs["report"]
    page = shown.data["text/html"]
    assert page.count("<tr>") == 2 * (1 + 4)
    assert page.count("<polyline") == 4
    assert page.count("<details") == 3
    assert page.count("<li>") >= 4
    assert "&lt;b&gt;a" in page
    assert "<b>a" not in page
    picture = re.search(r"data:image/png;base64,([^\"]+)", page).group(1)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert len(shown.data["text/plain"].splitlines()) <= 5


def test_a_figure_at_the_end_of_a_cell_is_shown_without_magic(outputs):
    for name in ("figure", "panel"):
        (shown,) = outputs[name]
        assert base64.b64decode(shown.data["image/png"]).startswith(b"\x89PNG")
