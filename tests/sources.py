"""The package as text, for tests that read it."""

import functools
from pathlib import Path

import localhessian

PACKAGE = "localhessian"
ROOT = Path(localhessian.__file__).parent


@functools.cache
def package_sources() -> dict[str, str]:
    """Every module of the package by its dotted name; a package by `name.__init__`."""
    return {
        ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)): path.read_text(encoding="utf-8")
        for path in sorted(ROOT.rglob("*.py"))
    }
