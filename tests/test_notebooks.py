"""Notebooks execute in a fresh kernel, say nothing but what they mean, and are what their scripts make of them.

What a text claims is asserted in the cells themselves, so a claim that fails is a cell that fails.
"""

import nbformat
import paired
import pytest

NAMES = [script.stem for script in paired.SCRIPTS]
KILOBYTES = 300


def committed(name: str) -> nbformat.NotebookNode:
    return nbformat.read(paired.FOLDER / f"{name}.ipynb", as_version=4)


def kinds(cell: nbformat.NotebookNode) -> list[tuple[str, ...]]:
    """What a cell shows, without the numbers, which differ in their last digits from machine to machine."""
    return [
        (output.output_type, output.get("name", ""), *sorted(output.get("data", {})))
        for output in cell.get("outputs", ())
    ]


def words(notebook: nbformat.NotebookNode) -> list[tuple[str, str, str]]:
    return [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_script_has_its_notebook():
    assert sorted(path.stem for path in paired.FOLDER.glob("*.ipynb")) == NAMES
    assert len(NAMES) == 7


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_what_its_script_makes(name):
    notebook = committed(name)
    nbformat.validate(notebook)
    assert words(notebook) == words(paired.read(paired.FOLDER / f"{name}.py")), "run `make notebooks`"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small_executed_and_clean(name):
    notebook = committed(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert (paired.FOLDER / f"{name}.ipynb").stat().st_size < 1000 * KILOBYTES
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    shown = [kind for cell in code for kind in kinds(cell)]
    assert not [kind for kind in shown if kind[0] == "error" or kind[1] == "stderr"]
    assert [kind for kind in shown if "image/png" in kind]
    assert any("assert " in cell.source for cell in code)
    assert "## What this does not show" in notebook.cells[-1].source


@pytest.mark.notebooks
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_executes(name):
    executed = paired.execute(paired.read(paired.FOLDER / f"{name}.py"))  # a failed assertion of a cell is raised
    told = [kinds(cell) for cell in executed.cells]
    assert told == [kinds(cell) for cell in committed(name).cells], "run `make notebooks`"
