"""Code that the documentation shows and `make docs` does not run: every block is of a kind that is checked here."""

import re
import shlex

import pytest
from sources import ROOT
from typer.main import get_command

from localhessian.lab._sweeps import asked_of, axis_of
from localhessian.lab.cli import app

pytestmark = pytest.mark.once

TOP = ROOT.parent
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").rglob("*.md"))]
PAGES += [TOP / "notebooks/README.md", *sorted((TOP / "benchmarks").rglob("README.md"))]
BLOCK = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
KINDS = {"python", "bash", "toml", "bibtex", "py", ""}
"""`python` runs in `make docs`; `py` is Python that takes hours; one without a name is what something prints."""
COMMAND = re.compile(r"^ *(localhessian (?:[^\n\\]|\\\n)*)", re.MULTILINE)


def blocks(kind):
    return [
        pytest.param(code, id=f"{page.relative_to(TOP)}-{i}")
        for page in PAGES
        for i, (of, code) in enumerate(BLOCK.findall(page.read_text("utf-8")))
        if of == kind
    ]


def commands():
    shown = [code for kind in ("bash", "") for block in blocks(kind) for code in block.values]
    for page in PAGES:
        text = page.read_text("utf-8")
        shown += re.findall(r"^    localhessian .*$", text, re.M)
        shown += [command for command in re.findall(r"`(localhessian [^`]*)`", text) if ".." not in command]
    found = [
        shlex.split(words.replace("\\\n", " "), comments=True)[1:] for one in shown for words in COMMAND.findall(one)
    ]
    return [words for words in dict.fromkeys(map(tuple, found)) if words != ("--help",)]


def test_every_block_is_of_a_kind_that_is_checked():
    kinds = [kind for page in PAGES for kind, _ in BLOCK.findall(page.read_text("utf-8"))]
    assert kinds.count("python") > 40
    assert set(kinds) <= KINDS


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words):
    """Their names, options and values; what they do is tested elsewhere."""
    name, *rest = words
    given = get_command(app).commands[name].make_context(name, rest).params
    for axis in given.get("axis", ()):
        axis_of(axis)


@pytest.mark.parametrize("code", blocks("toml"))
def test_files_of_sweeps_are_understood(code, tmp_path):
    (tmp_path / "sweep.toml").write_text(code, "utf-8")
    asked = asked_of(tmp_path / "sweep.toml")
    assert asked.cases > asked.compilations > 0


@pytest.mark.parametrize("code", blocks("py"))
def test_what_takes_hours_names_what_there_is(code):
    begun = "\n".join(
        line for line in code.splitlines() if line.startswith(("from ", "import ", "plan =", "algorithms ="))
    )
    exec(begun, {})
    compile(code, "a page", "exec")


def test_files_that_the_pages_name_are_there():
    named = {name for page in PAGES for name in re.findall(r"\bbenchmarks/[\w/]+\.\w+", page.read_text("utf-8"))}
    assert named
    assert sorted(name for name in named if not (TOP / name).is_file()) == []
