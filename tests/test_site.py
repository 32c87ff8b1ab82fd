"""The documentation site: every public name has one place in its reference, and its check sees what is wrong."""

import importlib.util
import inspect
import re
from collections import Counter
from types import ModuleType

import pytest
from sources import ROOT

import localhessian as lh
from localhessian import analysis, lab

pytestmark = pytest.mark.once

DOCS = ROOT.parent / "docs"
MODULES = {"plot"}
"""Modules that are public names themselves; the others hold what is behind the doors."""


def public(module, prefix=""):
    """What a user may name in a module."""
    named = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {prefix + name for name, value in named.items() if name in MODULES or not isinstance(value, ModuleType)}


def in_reference():
    """The names of all pages of the reference, one for each time."""
    pages = (page.read_text("utf-8") for page in sorted((DOCS / "reference").glob("*.md")))
    return [name for page in pages for name in re.findall(r"^::: localhessian\.(\S+)$", page, re.MULTILINE)]


def test_every_public_name_has_one_place_in_the_reference():
    names = Counter(in_reference())
    wanted = public(lh) | public(lab, "lab.")
    assert len(wanted) > 100
    assert sorted(wanted - set(names)) == []
    assert {name: count for name, count in names.items() if count > 1} == {}
    beside = {name.removeprefix("analysis.") for name in set(names) - wanted}
    assert sorted(beside - public(analysis)) == []


def test_figures_of_the_reference_are_all_that_draw():
    listed = re.search(r"members: \[(.*)\]", (DOCS / "reference" / "figures.md").read_text("utf-8"))[1].split(", ")
    draws = lambda value: inspect.isfunction(value) and {"ax", "reports"} & set(inspect.signature(value).parameters)
    assert sorted(listed) == sorted(name for name, value in vars(lh.plot).items() if draws(value))


@pytest.fixture(scope="module")
def checked():
    spec = importlib.util.spec_from_file_location("checked", DOCS / "checked.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dead_links_and_networks_are_found(checked, tmp_path):
    good = '<h1 id="top">a</h1><a href="b.html#there">b</a><a href="#top">up</a><a href="https://example.org">out</a>'
    (tmp_path / "a.html").write_text(good, "utf-8")
    (tmp_path / "b.html").write_text('<p id="there"><img src="data:image/png;base64,AA">', "utf-8")
    found = lambda: list(checked.dead(tmp_path, {path: checked.Page(path) for path in sorted(tmp_path.glob("*.html"))}))
    assert found() == []
    bad = '<a href="c.html">c</a><a href="b.html#gone">b</a><script src="https://example.org/a.js"></script>'
    (tmp_path / "a.html").write_text(good + bad, "utf-8")
    assert found() == [
        "a.html loads https://example.org/a.js",
        "a.html links to c.html, which is no file",
        "a.html links to b.html#gone, and there is no such place",
    ]
