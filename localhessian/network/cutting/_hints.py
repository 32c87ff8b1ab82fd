"""What to know of a cut besides its blocks: arrays that several of them use, a block that holds most of the model."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax

from localhessian.network.cutting._graph import Boundary, Graph, cut, ends_at
from localhessian.network.cutting._layout import Slot
from localhessian.network.cutting._mark import END, STOP
from localhessian.network.cutting._open import CutError
from localhessian.network.cutting._submodules import Model, Path, Wish, fits

_NAMED = 6
"""So many blocks are named in a sentence."""
_DIGITS = re.compile(r"\d+")

Trace = Callable[[Callable[..., Any]], tuple[Graph, tuple[Slot, ...]]]


def tied_arrays(trees: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for the arrays that the same blocks use, from the slots of every block."""
    users: dict[Slot, list[str]] = {}
    for name, tree in trees.items():
        for slot in jax.tree.leaves(tree):
            users.setdefault(slot, []).append(name)
    for blocks in dict.fromkeys(tuple(names) for names in users.values() if len(names) > 1):
        arrays = [".".join(slot.path) for slot, names in users.items() if tuple(names) == blocks]
        verb, whole = ("is one array", "it") if len(arrays) == 1 else ("are arrays", "them")
        yield f"{_some(arrays)} {verb} that {_some(blocks)} use; the first of them owns {whole} in `merge`."


def _some(names: Collection[str]) -> str:
    shown = [f"`{name}`" for name in list(names)[:_NAMED]]
    return ", ".join(shown) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def two_ways(model: Model, names: Collection[str]) -> Iterator[str]:
    """A sentence for the blocks that read their input in two directions."""
    if found := [name for name in model.two_ways if name in names]:
        reads = "reads its input" if len(found) == 1 else "read their inputs"
        yield f"{_some(found)} {reads} in two directions: `carry=True` makes a block of each."


def largest_opened(model: Model, trees: Mapping[str, Any], size: Callable[[Slot], int], trace: Trace) -> list[str]:
    """How to cut inside a block of several modules that holds more than half of all parameters, after a trial.

    `trace` takes a function of (params, x, context) apart; called once, and only where there is such a block.
    """
    totals = {name: sum(map(size, jax.tree.leaves(tree))) for name, tree in trees.items()}
    whole = sum(totals.values())
    large = next((name for name in trees if 2 * totals[name] > whole), None)
    if large is None:
        return []
    owned = {name: _owned(model, trees, name) for name in trees}
    slots_of_large = jax.tree.leaves(trees[large])
    size_at = lambda path: sum(size(slot) for slot in slots_of_large if slot.path[: len(path)] == path)
    inside = _parts(owned[large], size_at, whole / 2)
    if len(inside) < 2:
        return []
    candidates = {name: inside if name == large else _outermost(owned[name]) for name in trees}
    path_of = {".".join(path): path for paths in candidates.values() for path in paths}
    graph, slots = trace(model.marked({path: Wish(name, (STOP,)) for name, path in path_of.items()}))
    ends = [mark for mark in graph.boundaries if mark.kind == END]  # the model's own
    for block, paths in candidates.items():
        marks = [mark for mark in graph.boundaries if path_of.get(mark.name) in paths and graph.may_end(mark)]
        ends += marks if block == large else marks[-1:]  # other blocks end where they do now
    ends.sort(key=graph.boundaries.index)
    names = [path_of[mark.name] for mark in ends if mark.kind == STOP]
    at = ", ".join(f'"{pattern}"' for pattern in _patterns(list(dict.fromkeys(names)), model.paths))
    way = _tried(graph, ends, lambda i: size(slots[i]), totals[large] / whole)
    return [f"`{large}` holds {totals[large] / whole:.1%} of the parameters: " + way.format(at=at)]


def _owned(model: Model, trees: Mapping[str, Any], name: str) -> set[Path]:
    """The modules all of whose parameters are in one block, and in no other."""
    own = {path[:i] for path in _paths(trees[name]) for i in range(1, len(path))}
    other = {path[:i] for block in trees if block != name for path in _paths(trees[block]) for i in range(1, len(path))}
    return {path for path in own - other if model.paths.get(path)}


def _paths(tree: Any) -> set[Path]:
    return {slot.path for slot in jax.tree.leaves(tree)}


def _outermost(paths: set[Path]) -> list[Path]:
    return sorted(path for path in paths if not any(path[:i] in paths for i in range(1, len(path))))


def _parts(paths: set[Path], size: Callable[[Path], int], half: float) -> list[Path]:
    """The outermost of some modules; one that is alone, or holds more than half of the model, as its own."""
    units, parts = _outermost(paths), list[Path]()
    for unit in units:
        inside = _parts({path for path in paths if path[: len(unit)] == unit and path != unit}, size, half)
        parts += inside if len(inside) > 1 and (len(units) == 1 or size(unit) > half) else [unit]
    return parts


def _tried(graph: Graph, marks: list[Boundary], size: Callable[[int], int], before: float) -> str:
    """What comes of ending blocks at some marks: a sentence on the `at` that asks for them."""
    for carry in (False, True):
        try:
            pieces, _ = cut(graph, ends_at(graph, marks), carry)
        except CutError:
            continue
        sizes = [sum(map(size, piece.params)) for piece in pieces]
        if (largest := max(sizes) / sum(sizes)) < before:
            how, over = (", carry=True", "; z carries what jumps over their ends") if carry else ("", "")
            return f"`at=[{{at}}]{how}` makes {len(pieces)} blocks, the largest with {largest:.1%}{over}."
    return (
        "no cut between the modules in it was found; `lh.mark` in its code and `lh.chain_from_function` cut anywhere."
    )


def _patterns(ends: Sequence[Path], paths: Collection[Path]) -> list[str]:
    """The ends as few patterns that mean them and no other module."""
    patterns: list[str] = []
    for path in ends:
        numbers = tuple(_DIGITS.sub("*", word) for word in path)
        choices = (numbers, (*path[:-1], "*")) if len(path) > 1 else (numbers,)
        means = [
            pattern for pattern in choices if {p for p in paths if fits(p, pattern)} <= set(ends) and pattern != path
        ]
        several = [pattern for pattern in means if sum(fits(p, pattern) for p in ends) > 1]
        patterns.append(".".join((*several, path)[0]))
    return list(dict.fromkeys(patterns))
