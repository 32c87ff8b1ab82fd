"""The shape of the house: who may import whom, how light the door is, what may not stand in the code."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest
from sources import PACKAGE, ROOT, package_sources

pytestmark = pytest.mark.once

# A room may import the rooms before it; the modules of the ground floor share the first place.
RANKS = {
    "_archive": 0,
    "_arguments": 0,
    "_blas": 0,
    "_brief": 0,
    "_clock": 0,
    "_grid": 0,
    "_mesh": 0,
    "_files": 0,
    "_memory": 0,
    "_optional": 0,
    "_programs": 0,
    "_progress": 0,
    "_tree": 0,
    "_status": 0,
    "_types": 0,
    "_version": 0,
    "linalg": 1,
    "network": 2,
    "curvature": 3,
    "training": 4,
    "analysis": 5,
    "lab": 6,
    "study": 7,
    "__main__": 6,
}
TOP = 8
# A sub-room may import the sub-rooms before it, through their doors; "" is what lies in the room itself.
SUBROOMS = {
    "linalg": ("operators", "spectra", "krylov", "structure", "stochastic", ""),
    "network": ("", "cutting"),
    "analysis": ("rows", "plot", "", "sweeps"),
}
OPTIONAL = frozenset(
    {
        "matplotlib",
        "pandas",
        "rich",
        "jinja2",
        "typer",
        "sklearn",
        "equinox",
        "flax",
        "xarray",
        "PIL",
        "scipy",
        "tqdm",
        "zarr",
        "h5netcdf",
    }
)
HEAVY = (
    "matplotlib",
    "pandas",
    "rich",
    "typer",
    "jinja2",
    "equinox",
    "sklearn",
    "PIL",
    "xarray",
    "flax",
    "zarr",
    "h5netcdf",
)
MAX_LINES = 400
FORBIDDEN_CALLS = {"print", "breakpoint", "exec", "eval"}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__init__" else ""


def rank(module: str) -> int:
    """The place of a module; the root is above all rooms. An unknown room is a KeyError: give it a place."""
    return RANKS[room(module)] if room(module) else TOP


def subroom(module: str) -> str:
    parts = module.split(".")
    return parts[2] if len(parts) > 3 and parts[2] in SUBROOMS.get(parts[1], ()) else ""


def subrank(module: str) -> int:
    """The place within its room; the room's own door is above all."""
    places = SUBROOMS.get(room(module), ("",))
    return len(places) if module.split(".")[2:] == ["__init__"] else places.index(subroom(module))


def through_helper(node: ast.AST) -> str:
    """What optional("localhessian..") or importlib.import_module("localhessian..") would import; else nothing."""
    if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
        return ""
    called, name = ast.unparse(node.func).rsplit(".", 1)[-1], str(node.args[0].value)
    return name if called in {"optional", "import_module"} and name.startswith(f"{PACKAGE}.") else ""


def imports(module: str, source: str) -> Iterator[tuple[str, bool, int]]:
    """(absolute dotted name, whether inside a function, line) of every import; `from a import b` gives a.b."""
    package = module.rsplit(".", 1)[0].split(".")

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                origin = ".".join([*base, *([child.module] if child.module else [])])
                yield from ((f"{origin}.{alias.name}", inside, child.lineno) for alias in child.names)
            elif name := through_helper(child):
                yield name, inside, child.lineno
                yield from walk(child, inside)
            else:
                yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(ast.parse(source), False)


def owner(name: str, modules: Mapping[str, str]) -> str:
    """The module that an imported dotted name lies in, a package as `name.__init__`."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        if prefix in modules:
            return prefix
        if f"{prefix}.__init__" in modules:
            return f"{prefix}.__init__"
    return name


def import_violations(modules: Mapping[str, str]) -> list[str]:
    """One sentence for each import that the plan of the house forbids."""
    found, graph = [], {module: set() for module in modules}
    for module, source in modules.items():
        for name, inside, line in imports(module, source):
            where = f"{module}:{line}"
            if name.split(".")[0] != PACKAGE:
                if inside and name.split(".")[0] not in OPTIONAL:
                    found.append(f"{where} hides the import of {name} in a function")
                continue
            target = owner(name, modules)
            graph[module].add(target)
            if inside:
                found.append(f"{where} hides the import of {name} in a function")
            if rank(target) > rank(module):
                found.append(f"{where} imports upward: {name}")
            elif 0 < rank(target) < rank(module) and not target.endswith(".__init__"):
                found.append(f"{where} climbs past the door of {room(target)}: {name}")
            elif room(target) == room(module) and subrank(target) > subrank(module):
                found.append(f"{where} imports upward within {room(module)}: {name}")
            elif subroom(target) not in {"", subroom(module)} and not target.endswith(".__init__"):
                found.append(f"{where} climbs past the door of {subroom(target)}: {name}")
    return found + [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(graph)]


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Cycles met in a depth-first walk. A room's `__init__` imports its modules, so they may not import it."""
    done: set[str] = set()
    found: list[list[str]] = []

    def visit(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
        elif node not in done:
            for target in sorted(graph.get(node, ())):
                visit(target, [*path, node])
            done.add(node)

    for node in sorted(graph):
        visit(node, [])
    return found


def names_a_side(compared: ast.Compare) -> bool:
    """Whether something called `wrt` is compared with a word."""
    operands = [compared.left, *compared.comparators]
    words = any(isinstance(operand, ast.Constant) and isinstance(operand.value, str) for operand in operands)
    return words and any(ast.unparse(operand).rsplit(".", 1)[-1] == "wrt" for operand in operands)


def undocumented(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str) -> Iterator[str]:
    """What has no docstring, itself and its public members; ruff's D1xx take all of a module `_name` for private."""
    if not ast.get_docstring(node):
        yield name
    for child in node.body if not isinstance(node, ast.FunctionDef) else ():
        if isinstance(child, ast.FunctionDef) and any(ast.unparse(by) == "overload" for by in child.decorator_list):
            continue  # a signature
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            yield from undocumented(child, child.name)


def code_violations(module: str, source: str) -> list[str]:
    """One sentence for each thing that no module may hold."""
    found = []
    found += [f"{module}: {name} has no docstring" for name in undocumented(ast.parse(source), "the module")]
    for node in ast.walk(ast.parse(source)):
        where = f"{module}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Assert):
            found.append(f"{where} asserts: raise with a sentence, or return a status")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(f"{where} calls {node.func.id}")
        if isinstance(node, ast.Compare) and names_a_side(node):
            found.append(f"{where} compares the name of a side: turn it into a `Side` at the door")
    if any(name.split(".")[0] == "pickle" for name, _, _ in imports(module, source)):
        found.append(f"{module} imports pickle")
    traced = any(name.startswith("jax.extend") for name, _, _ in imports(module, source))
    if traced and not module.startswith(f"{PACKAGE}._programs."):
        found.append(f"{module} imports jax.extend: only _programs does")
    if re.search(r"allow_pickle\s*=\s*True", source):
        found.append(f"{module} allows pickles")
    if "jax.config.update" in source and module != f"{PACKAGE}.lab._programs_kept":  # the command line's own process
        found.append(f"{module} changes jax.config")
    if source.count("\n") > MAX_LINES:
        found.append(f"{module} has {source.count(chr(10))} lines, more than {MAX_LINES}")
    return found


def heavy_modules(statement: str, heavy: tuple[str, ...] = HEAVY) -> list[str]:
    """Which heavy packages a fresh interpreter holds after a statement."""
    program = f"{statement}\nimport sys\nprint(' '.join(m for m in {heavy!r} if m in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return ran.stdout.split()


def test_only_the_command_line_keeps_programs():
    """What changes jax.config is of its process: nothing that is imported as a library reaches it."""
    kept = f"{PACKAGE}.lab._programs_kept"
    sources = package_sources()
    assert [m for m, s in sources.items() if any(owner(n, sources) == kept for n, *_ in imports(m, s))] == [
        f"{PACKAGE}.lab.cli"
    ]


def test_imports_flow_downward():
    modules = package_sources()
    assert len(modules) > 10
    assert import_violations(modules) == []


@pytest.mark.parametrize(
    ("module", "source", "sentence"),
    [
        ("linalg._a", "from localhessian.network import Chain", "imports upward"),
        ("linalg._a", "import localhessian.lab._b", "imports upward"),
        ("linalg._a", "from ..network import Chain", "imports upward"),
        ("linalg._a", "from localhessian import Chain", "imports upward"),
        ("lab._a", "import localhessian as lh", "imports upward"),
        ("_tree", "from localhessian.linalg import gram", "imports upward"),
        ("network._a", "from localhessian.linalg._a import f", "climbs past the door of linalg"),
        ("lab._b", "def f():\n    import localhessian.linalg", "hides the import of localhessian.linalg"),
        ("lab._b", "class A:\n    def f(self):\n        import json", "hides the import of json"),
        ("linalg._a", "from localhessian.linalg._b import f", "cycle: "),
        ("_status", "from localhessian._types import Array", "cycle: "),
        ("linalg.spectra._a", "from localhessian.linalg.krylov import f", "imports upward within linalg"),
        ("linalg.spectra._a", "from localhessian.linalg._a import f", "imports upward within linalg"),
        ("linalg.krylov._a", "from localhessian.linalg.spectra._a import f", "climbs past the door of spectra"),
        ("linalg._a", "from localhessian.linalg.spectra._a import f", "climbs past the door of spectra"),
        ("network._b", "from localhessian.network.cutting import mark", "imports upward within network"),
        ("linalg._a", "f = optional('localhessian.network')", "imports upward"),
        ("linalg._a", "def f():\n    return optional('localhessian.linalg.spectra')", "hides the import"),
    ],
)
def test_forbidden_imports_are_found(module, source, sentence):
    rooms = ("linalg", "network", "curvature", "training", "analysis", "lab")
    modules = {f"{PACKAGE}.{name}.__init__": "" for name in rooms}
    modules |= {f"{PACKAGE}.{name}": "" for name in ("__init__", "_tree", "_status")}
    modules |= {f"{PACKAGE}._types": "from localhessian._status import Status"}
    modules |= {f"{PACKAGE}.linalg._a": "", f"{PACKAGE}.lab._b": ""}
    modules |= {f"{PACKAGE}.linalg.{name}": "" for name in ("spectra.__init__", "krylov.__init__", "krylov._a")}
    modules |= {f"{PACKAGE}.linalg.spectra._a": "from localhessian.linalg.operators import gram"}
    modules |= {f"{PACKAGE}.linalg.operators.__init__": "", f"{PACKAGE}.network._b": ""}
    modules |= {f"{PACKAGE}.network.cutting.__init__": "from localhessian.network._b import f"}
    modules |= {f"{PACKAGE}.linalg._b": "from localhessian.linalg._a import f"}
    assert import_violations(modules) == []
    modules[f"{PACKAGE}.{module}"] = source
    assert [found for found in import_violations(modules) if sentence in found], import_violations(modules)


@pytest.mark.parametrize(
    "source",
    [
        "from localhessian.linalg import gram\nfrom localhessian._tree import ravel",
        "from localhessian.linalg import gram\nfiles('localhessian.lab')",
        "from localhessian.network._b import f",
        "def plot():\n    import matplotlib.pyplot as plt\n    from rich.table import Table",
    ],
)
def test_allowed_imports_pass(source):
    names = ("_tree", "linalg.__init__", "network.__init__", "network._b")
    modules = {f"{PACKAGE}.{name}": "" for name in names} | {f"{PACKAGE}.network._a": source}
    assert import_violations(modules) == []


def test_a_new_room_needs_a_place():
    with pytest.raises(KeyError, match="attic"):
        import_violations({f"{PACKAGE}.attic._a": "from localhessian.attic._b import f", f"{PACKAGE}.attic._b": ""})


@pytest.mark.parametrize("module", sorted(package_sources()))
def test_code_keeps_the_rules(module):
    assert code_violations(module, package_sources()[module]) == []


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("assert x > 0", "asserts"),
        ("def f():\n    print('here')", "calls print"),
        ("breakpoint()", "breakpoint"),
        ("import pickle", "imports pickle"),
        ("from pickle import load", "imports pickle"),
        ("np.load(path, allow_pickle=True)", "allows pickles"),
        ("jax.config.update('jax_enable_x64', True)", "changes jax.config"),
        ("x = 1\n" * 401, "has 401 lines"),
        ("if problem.wrt == 'params': pass", "compares the name of a side"),
        ("one = wrt != 'input' and x", "compares the name of a side"),
        ("from jax.extend import core", "imports jax.extend"),
        ("import jax.extend.core", "imports jax.extend"),
        ("x = 1", "the module has no docstring"),
        ("def f(x):\n    return x", "f has no docstring"),
        ('class A:\n    """A."""\n\n    def f(self):\n        self.x = 1', "f has no docstring"),
    ],
)
def test_broken_rules_are_found(source, sentence):
    assert [found for found in code_violations("m", source) if sentence in found]


def test_import_is_light():
    assert heavy_modules("import localhessian") == []


def test_a_heavy_import_is_seen():
    assert heavy_modules("import localhessian, colorsys", ("colorsys",)) == ["colorsys"]
