"""Documentation executes: docstrings of the package, and python blocks of README.md and docs/*.md."""

import doctest
import importlib
import io
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import localhessian

ROOT = Path(localhessian.__file__).parents[1]
FENCE = re.compile(r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)
FIRST = ("README.md", "docs/first-look.md", "docs/bring-your-model.md")
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def docstrings() -> Iterator[doctest.DocTest]:
    """Every docstring with an example. Its namespace is empty: what it needs it must import, as its reader must."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in pkgutil.walk_packages(localhessian.__path__, "localhessian."):
        module = importlib.import_module(info.name)
        yield from (test for test in finder.find(module, globs={"__name__": "__main__"}) if test.examples)


def markdown_files() -> list[Path]:
    """Those with code, docs/how-to and other folders included."""
    pages = (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    return sorted(path for path in pages if path.exists() and FENCE.search(path.read_text(encoding="utf-8")))


def run_doctest(test: doctest.DocTest) -> str:
    """Run it; what went wrong, or nothing."""
    report = io.StringIO()
    doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=report.write, clear_globs=False)
    return report.getvalue()


def run_markdown(text: str, name: str) -> str:
    """Run the python blocks of one page in order, in one namespace; what the `>>>` blocks print is compared."""
    namespace: dict = {"__name__": "__main__"}
    failures = ""
    for block in FENCE.finditer(text):
        code = textwrap.dedent(block["code"])
        line = text[: block.start()].count("\n") + 1
        if code.lstrip().startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(code, namespace, name, name, line)
            test.globs = namespace
            failures += run_doctest(test)
        else:
            exec(compile("\n" * line + code, name, "exec"), namespace)
    return failures


@pytest.mark.examples
@pytest.mark.relaxed
@pytest.mark.parametrize("test", list(docstrings()), ids=lambda test: test.name)
def test_docstring(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if report := run_doctest(test):
        pytest.fail(report, pytrace=False)


def pages() -> Iterator[object]:
    """Those that one reads first run as their reader compiles them, however the others are compiled."""
    for path in markdown_files():
        name = path.relative_to(ROOT).as_posix()
        yield pytest.param(path, id=name, marks=[pytest.mark.optimized] * (name in FIRST))


@pytest.mark.examples
@pytest.mark.relaxed
@pytest.mark.parametrize("path", list(pages()))
def test_page(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if report := run_markdown(path.read_text(encoding="utf-8"), str(path)):
        pytest.fail(report, pytrace=False)


PAGE = """
Text.

```python
x = 2
```

- In a list:
  ```python
  >>> x + 1
  {answer}
  ```

```bash
this is not python
```
"""


def test_a_right_page_passes():
    assert run_markdown(PAGE.replace("{answer}", "3"), "page") == ""


def test_a_wrong_answer_is_reported_with_its_line():
    report = run_markdown(PAGE.replace("{answer}", "4"), "page")
    assert "Expected:\n    4\nGot:\n    3" in report
    assert 'File "page", line 10' in report


def test_a_broken_block_raises_at_its_line():
    with pytest.raises(ZeroDivisionError) as raised:
        run_markdown("```python\nx = 1\nx / 0\n```\n", "page")
    assert raised.traceback[-1].lineno == 2  # counted from 0: the third line of the page


def test_warnings_in_examples_are_errors():
    with pytest.raises(UserWarning, match="old"):
        run_markdown("```python\nimport warnings\nwarnings.warn('old')\n```\n", "page")


def test_pages_with_code_are_found_in_every_folder():
    found = {path.relative_to(ROOT).as_posix() for path in markdown_files()}
    assert {"README.md", "docs/theory.md", "docs/how-to/modes.md"} & found == {"README.md", "docs/how-to/modes.md"}


def test_docstrings_are_found():
    assert "localhessian.network._chain.Chain" in {test.name for test in docstrings()}
