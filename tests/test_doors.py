"""What stands at a door: re-exports alone, and every public name once, with a docstring."""

import ast
import inspect

import pytest
from sources import package_sources

import localhessian as lh

pytestmark = pytest.mark.once


def public_names() -> list[str]:
    return [name for name in vars(lh) if not name.startswith("_") and not inspect.ismodule(getattr(lh, name))]


def reexport_violations(source: str) -> list[str]:
    """Sentences about an `__init__` that is more than a docstring and explicit, sorted re-exports."""
    found, order = [], []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom):
            order += [(node.module, alias.name) for alias in node.names]
            found += [f"{a.name} is not re-exported as itself" for a in node.names if a.name != a.asname]
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            found.append(f"line {node.lineno} is neither a docstring nor a re-export")
    modules = [module for module, _ in order]
    if modules != sorted(modules):
        found.append("the re-exports are not grouped by room")
    if len(set(order)) < len(order):
        found.append("a name is exported twice")
    return found


@pytest.mark.parametrize("module", [m for m in sorted(package_sources()) if m.endswith(".__init__")])
def test_doors_only_reexport(module):
    assert reexport_violations(package_sources()[module]) == []


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("from a import x", "not re-exported as itself"),
        ("from a import x as y", "not re-exported as itself"),
        ("from b import x as x\nfrom a import y as y", "not grouped"),
        ("from a import x as x\nfrom a import x as x", "twice"),
        ("value = 3", "neither"),
    ],
)
def test_a_crooked_door_is_seen(source, sentence):
    assert [found for found in reexport_violations(source) if sentence in found]


def test_public_names_have_docstrings():
    names = public_names()
    assert {"Block", "Chain", "LinearMap", "linear_map"} <= set(names)
    # A dataclass without a docstring gets its signature as one.
    bare = [name for name in names if not (doc := inspect.getdoc(getattr(lh, name))) or doc.startswith(f"{name}(")]
    assert bare == []


def test_a_second_name_for_one_thing_is_not_exported():
    things = [id(getattr(lh, name)) for name in public_names()]
    assert len(set(things)) == len(things)
