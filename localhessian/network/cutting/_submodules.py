"""Which submodules of a model to cut after, and marking what goes through them without editing the model."""

import difflib
import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, cast

import jax

from localhessian._arguments import expect, expect_function
from localhessian.network.cutting._mark import HALF, OUT, START, STOP, tagged

Path: TypeAlias = tuple[str, ...]
Kinds: TypeAlias = tuple[str, ...]
AT = "the path of a submodule, several, or a function of (path, module)"
LIBRARIES = ("flax", "equinox")
_DIGITS = re.compile(r"\d+")
At: TypeAlias = str | Iterable[str] | Callable[[str, Any], bool] | None


@dataclass(frozen=True)
class Submodule:
    """A module of a model: where it is, and what decides whether it makes a block of its own."""

    path: Path
    module: Any
    has_params: bool
    is_container: bool
    is_inner: bool = False
    """Whether it runs inside another module than its path says, and belongs to the block of that one."""
    forward: Path | None = None
    """Of a layer that reads its input in two directions: the module that reads it first, forward."""

    @property
    def name(self) -> str:
        """The path with dots."""
        return ".".join(self.path)


@dataclass(frozen=True)
class Wish:
    """A submodule to mark: by which name, and whether where it is entered, where it returns, or both."""

    name: str
    kinds: Kinds


@dataclass(frozen=True)
class Model:
    """A model without its arrays: where it can be cut, and the function to cut with submodules of one's choice marked.

    Attributes:
        paths: Of every submodule that `at` may name, and whether it could make a block.
        two_ways: The layers that read their input in two directions and would be two blocks if z might carry it.
        marked: From the submodules to mark to a function of (params, x, context).
    """

    paths: dict[Path, bool]
    two_ways: tuple[str, ...]
    marked: Callable[[dict[Path, Wish]], Callable[..., Any]]

    @classmethod
    def of(
        cls,
        modules: Sequence[Submodule],
        marked: Callable[[dict[Path, Wish]], Callable[..., Any]],
        at: At = None,
        *,
        carry: bool,
    ) -> "Model":
        """Of every module, the root included, and what was asked for."""
        paths = {module.path: module.has_params and not module.is_inner for module in _nameable(modules)}
        two_ways = [module.name for module in modules if module.forward is not None and at is None and not carry]
        return cls(paths, tuple(two_ways), marked)


def _nameable(modules: Sequence[Submodule]) -> list[Submodule]:
    return [module for module in modules if module.path and not (module.is_container and not callable(module.module))]


def choose(modules: Sequence[Submodule], at: At, noun: str = "submodule", *, carry: bool = False) -> dict[Path, Wish]:
    """The submodules to mark.

    Args:
        modules: Every module of the model, the root (with the empty path) included.
        at: One or more patterns, a function of (path, module), or None for the outermost layers, and for what lies in
            those of them that hold repeated blocks.
        noun: What a module is called in messages.
        carry: Whether z may carry the input of a layer of two directions past the first of them: each is a block then.

    Raises:
        TypeError: It is none of these.
        ValueError: A pattern matches no submodule; the message suggests the nearest path.
    """
    if at is None:
        # What follows a layer (its activation function) belongs to its block; a block of layers is complete in itself.
        kinds = {True: (START, STOP), False: (START,)}
        wishes: dict[Path, Wish] = {}
        for unit in _opened(modules):
            name = unit.name
            if carry and unit.forward is not None:
                wishes[unit.forward] = Wish(f"{name}.forward_rnn", (HALF,))
                name = f"{name}.backward_rnn"
            wishes[unit.path] = Wish(name, kinds[_has_inside(modules, unit.path)])
        return wishes
    inner = _nameable(modules)
    if callable(at):
        expect_function("at", at, AT, takes=2)
        chosen = [module for module in inner if at(module.name, module.module)]
        if not chosen:
            raise ValueError(f"`at` chooses none of the {noun}s {_some(inner)}.")
    else:
        chosen = [module for pattern in _patterns(at) for module in _matching(inner, pattern, noun)]
    return {module.path: Wish(module.name, (OUT,)) for module in chosen}


def _patterns(at: Any) -> list[str]:
    patterns: list[Any] = (
        [at] if isinstance(at, str) or not isinstance(at, Iterable) or hasattr(at, "shape") else list(at)
    )
    for pattern in patterns:
        expect("at", pattern, str, AT)
    return patterns


def _matching(modules: Sequence[Submodule], pattern: str, noun: str) -> list[Submodule]:
    found = [module for module in modules if fits(module.path, tuple(pattern.split(".")))]
    if not found:
        near = difflib.get_close_matches(pattern, [module.name for module in modules], n=1, cutoff=0.3)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise ValueError(f"`at`: no {noun} matches `{pattern}`.{hint} The model has {_some(modules)}.")
    return found


def fits(path: Path, pattern: Path) -> bool:
    """Whether a pattern means a path, word by word: `*` stays within a word, `**` stands for any number of words."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(fits(path[i:], pattern[1:]) for i in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and fits(path[1:], pattern[1:])


def _some(modules: Sequence[Submodule], limit: int = 12) -> str:
    names = [f"`{module.name}`" for module in modules]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _opened(modules: Sequence[Submodule]) -> list[Submodule]:
    """The units of the model, each that holds repeated blocks (an encoder, a stage) followed by its own units."""

    def opened(units: list[Submodule]) -> Iterator[Submodule]:
        for unit in units:
            yield unit
            if _repeats(modules, unit.path):
                yield from opened(_outermost(modules, unit.path))

    return list(opened(_units(modules)))


def _units(modules: Sequence[Submodule]) -> list[Submodule]:
    """The outermost modules with parameters; lists and Sequentials count as their items, a sole wrapper as its own."""
    root: Path = ()
    while True:
        units = _outermost(modules, root)
        if len(units) != 1 or not _has_inside(modules, units[0].path):
            return units
        root = units[0].path


def _outermost(modules: Sequence[Submodule], root: Path) -> list[Submodule]:
    """The modules with parameters inside one of them that lie in none but lists and Sequentials there."""
    closed = {module.path for module in modules if not module.is_container and len(module.path) > len(root)}
    return [
        module
        for module in modules
        if module.path[: len(root)] == root
        and module.path in closed
        and module.has_params
        and not module.is_inner
        and not any(module.path[:i] in closed for i in range(len(root) + 1, len(module.path)))
    ]


def _repeats(modules: Sequence[Submodule], path: Path) -> bool:
    """Whether a module holds several blocks of layers of one class, numbered as in a list."""
    inner = [module for module in _outermost(modules, path) if _has_inside(modules, module.path)]
    kinds = Counter((type(m.module), _DIGITS.sub("", m.name)) for m in inner if not _of_a_library(m.module))
    return any(count > 1 for count in kinds.values())


def _of_a_library(module: Any) -> bool:
    """Whether it is a layer of flax or equinox (attention holds layers, and is one), also where `nn.remat` wraps it."""
    own = next(cls for cls in type(module).__mro__ if not cls.__module__.endswith(".transforms"))
    return own.__module__.split(".")[0] in LIBRARIES


def _has_inside(modules: Sequence[Submodule], path: Path) -> bool:
    return any(m.has_params and len(m.path) > len(path) and m.path[: len(path)] == path for m in modules)


@lru_cache(maxsize=4096)
def marking_class(cls: Any, wish: Wish) -> type:
    """A subclass whose `__call__` marks what goes in or out."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call_marked(lambda *a, **k: cls.__call__(self, *a, **k), wish, args, kwargs)

    body = {
        "__call__": __call__,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    return cast(type, type(cls)(cls.__name__, (cls,), body))


def call_marked(call: Callable[..., Any], wish: Wish, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a submodule with its marks on the first argument and on what it returns."""
    if START in wish.kinds and args and _is_activations(args[0]):
        args = (tagged(args[0], wish.name, START), *args[1:])
    out = call(*args, **kwargs)
    for kind in (OUT, HALF, STOP):
        if kind in wish.kinds and _is_activations(out):
            out = tagged(out, wish.name, kind)
    return out


def _is_activations(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(isinstance(leaf, jax.Array) for leaf in leaves)


def check_called(asked: dict[Path, Wish], seen: Sequence[str]) -> None:
    """Refuse boundaries that were asked for and never reached."""
    missing = [wish.name for wish in asked.values() if OUT in wish.kinds and wish.name not in seen]
    if missing:
        raise ValueError(
            f"`at`: the submodule `{missing[0]}` was never called, or does not return arrays, so there is nothing to "
            "cut after it. Name a submodule that runs, or choose another `call`."
        )
