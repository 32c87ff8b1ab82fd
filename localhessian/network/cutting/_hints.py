"""What to know of a cut besides its blocks: arrays that several of them use, a block that holds most of the model."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from localhessian.network.cutting._layout import Slot

_NAMED = 6
"""So many blocks are named in a suggestion."""


def tied_arrays(trees: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each array that several blocks use, from the slots of every block."""
    users: dict[Slot, list[str]] = {}
    for name, tree in trees.items():
        for slot in jax.tree.leaves(tree):
            users.setdefault(slot, []).append(name)
    for slot, names in users.items():
        if len(names) > 1:
            uses = ", ".join(f"`{name}`" for name in names)
            yield f"`{'.'.join(slot.path)}` is one array that {uses} use; the first of them owns it in `merge`."


def unopened_block(trees: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[str]:
    """How to cut inside a block that is a module of several and holds more than half of all `sizes`."""
    for name, size in sizes.items():
        if 2 * size > sum(sizes.values()) and len(_modules_in(name, trees[name]) or ()) > 1:
            others = [
                f'"{other}"' for other, tree in trees.items() if other != name and _modules_in(other, tree) is not None
            ]
            more = ["..."] if len(others) > _NAMED else []
            at = ", ".join([*others[:_NAMED], *more, f'"{name}.*"'])
            yield (
                f"`{name}` holds {size / sum(sizes.values()):.1%} of the parameters: `at=[{at}]` ends blocks after the "
                "modules in it too; what jumps over such a boundary `carry=True` takes along in z."
            )


def _modules_in(name: str, tree: Any) -> set[str] | None:
    """The modules that hold parameters in a block that is one module of the model; None if it is none, or several."""
    path = tuple(name.split("."))
    slots = jax.tree.leaves(tree)
    if not slots or any(slot.path[: len(path)] != path for slot in slots):
        return None
    return {slot.path[len(path)] for slot in slots if len(slot.path) > len(path) + 1}
