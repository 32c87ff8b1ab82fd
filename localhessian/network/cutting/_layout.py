"""Two layouts of one model's parameters: the user's pytree, and one dict of readable names for every block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._types import Params


@dataclass(frozen=True)
class Slot:
    """One array that blocks may use: a leaf of the model's parameters, or a slice of one that a scan takes apart."""

    leaf: int
    path: tuple[str, ...]
    part: int | None = None

    def read(self, leaves: Sequence[Any]) -> Any:
        """The array, out of the leaves of the model."""
        whole = leaves[self.leaf]
        return whole if self.part is None else whole[self.part]


def path_names(path: Sequence[Any]) -> tuple[str, ...]:
    """A key path of jax as plain words, without the `value` that flax wraps around its arrays."""
    wrapped = len(path) > 1 and getattr(path[-1], "name", None) in ("value", "raw_value")
    names = ("key", "idx", "name")
    words = (next((getattr(key, name) for name in names if hasattr(key, name)), key) for key in path)
    return tuple(map(str, words))[: -1 if wrapped else None]


def names_of(tree: Any) -> list[tuple[str, ...]]:
    """The words of every leaf's path."""
    return [path_names(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def slots_of(params: Params, parts: dict[int, int]) -> list[Slot]:
    """The slots of a model; leaf i comes as `parts[i]` slices along its leading axis if `parts` says so."""
    slots = []
    for leaf, (path, _) in enumerate(jax.tree_util.tree_flatten_with_path(params)[0]):
        names = path_names(path) or ("params",)
        numbers: Sequence[int | None] = range(parts[leaf]) if leaf in parts else (None,)
        slots += [Slot(leaf, names, part) for part in numbers]
    return slots


def nested(slots: Sequence[Slot]) -> dict[str, Any]:
    """The slots of one block as a nested dict, keyed by their paths without the part that all of them share.

    Where that leaves positions in a list they count from the block's first, so that equal blocks have equal keys.
    """
    paths = [_numbered(slot, slots) for slot in slots]
    shared = 0
    while paths and all(len(p) > shared + 1 and p[shared] == paths[0][shared] for p in paths):
        shared += 1
    if paths and all(path[shared].isdecimal() for path in paths):
        first = min(int(path[shared]) for path in paths)
        paths = [(*path[:shared], str(int(path[shared]) - first), *path[shared + 1 :]) for path in paths]
    tree: dict[str, Any] = {}
    for slot, path in zip(slots, paths, strict=True):
        inner = tree
        for word in path[shared:-1]:
            inner = inner.setdefault(word, {})
        inner[path[-1]] = slot
    return tree


def _numbered(slot: Slot, slots: Sequence[Slot]) -> tuple[str, ...]:
    alone = sum(other.leaf == slot.leaf for other in slots) == 1
    return slot.path if alone else (*slot.path[:-1], f"{slot.path[-1]}[{slot.part}]")


def scatter(
    trees: dict[str, dict[str, Any]], blocks: dict[str, Any], shapes: Sequence[Any], tied: str, like: list[Any] | None
) -> list[Any]:
    """The leaves of the model, of these shapes, out of the arrays of the blocks, in the structure of their slots.

    Of several uses of one array the first counts (`tied` = `owner`), or they are added (`sum`). What no block uses is
    that of `like`; where that is None, zeros under `sum`, and an error under `owner`.
    """
    found: dict[Slot, Any] = {}
    for _, slot, array in _uses(trees, blocks):
        if slot not in found:
            found[slot] = array
        elif tied == "sum":
            found[slot] = found[slot] + array
    return [_leaf(i, shape, found, tied, like) for i, shape in enumerate(shapes)]


def sum_tied(trees: dict[str, dict[str, Any]], blocks: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arrays of the blocks, with the sum over its uses at each use of a slot."""
    totals: dict[Slot, Any] = {}
    for _, slot, array in _uses(trees, blocks):
        totals[slot] = totals[slot] + array if slot in totals else array
    return {name: jax.tree.map(totals.__getitem__, tree) for name, tree in trees.items()}


def check_tied(trees: dict[str, dict[str, Any]], blocks: dict[str, Any]) -> None:
    """Refuse uses of one slot that hold different values."""
    found: dict[Slot, tuple[str, Any]] = {}
    for name, slot, array in _uses(trees, blocks):
        first, owner = found.setdefault(slot, (name, array))
        if owner is not array and not np.array_equal(owner, array):
            raise ValueError(
                f"blocks `{first}` and `{name}` use one parameter of the model, `{'.'.join(slot.path)}`, and `params` "
                "holds different values of it: pass `chain.split(model_params)`."
            )


def _uses(trees: dict[str, dict[str, Any]], blocks: dict[str, Any]) -> Iterator[tuple[str, Slot, Any]]:
    """(name of the block, slot, array) of every parameter of every block."""
    for name, tree in trees.items():
        slots, structure = jax.tree.flatten(tree)
        arrays, given = jax.tree.flatten(blocks.get(name, {}))
        if slots or arrays:
            same_structure(given, structure, f"the parameters of block `{name}`")
        yield from zip((name,) * len(slots), slots, arrays, strict=True)


def _leaf(i: int, shape: Any, found: dict[Slot, Any], tied: str, like: list[Any] | None) -> Any:
    own = {slot.part: (slot, array) for slot, array in found.items() if slot.leaf == i}
    if None in own:
        return own[None][1]
    if own and len(own) == shape.shape[0]:
        return jnp.stack([own[part][1] for part in range(shape.shape[0])])
    if like is None and tied == "owner":
        raise ValueError(
            f"no block uses all of parameter {i} (shape {shape.shape}), so `merge` cannot know its value: pass "
            "`like=model_params`, from which it is taken."
        )
    rest = jnp.zeros(shape.shape, shape.dtype) if like is None or tied == "sum" else like[i]
    for part, (_, array) in own.items():
        rest = rest.at[part].set(array)
    return rest


def same_structure(got: Any, expected: Any, what: str) -> None:
    """Refuse a pytree of another structure than expected."""
    if got != expected:
        raise ValueError(f"{what} must have the structure {_readable(expected)}, got {_readable(got)}.")


def _readable(structure: Any) -> str:
    return str(structure).removeprefix("PyTreeDef(").removesuffix(")")
