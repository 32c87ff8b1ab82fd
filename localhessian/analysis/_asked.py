"""What is asked for, by the names of blocks, sides and parts, and what of it exists."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

import numpy as np

from localhessian._arguments import expect_here, short
from localhessian._mesh import is_traced
from localhessian._programs import at_once
from localhessian._tree import floating_leaves, is_concrete, size
from localhessian.analysis.rows import Key, several
from localhessian.curvature import Part
from localhessian.network import SIDES, BackMatching, Chain, Side, StreamMatching, sample_indices

PARTS: tuple[Part, ...] = get_args(Part)
UNASKED = "no parameters: H_z is computed if the block is named in `blocks=`"


def expect_numbers(function: str, *arrays: Any, here: Mapping[str, Any] | None = None) -> None:
    """Refuse traced values.

    Args:
        function: Its name.
        arrays: Its arguments.
        here: Settings by name that need the numbers in this process, where they are not None.

    Raises:
        TypeError: There are some.
        ValueError: Only other processes have some of the numbers, and a setting needs them.
    """
    if is_traced(*arrays):
        raise TypeError(
            f"`{function}` runs on the host, on numbers: call it outside `jax.jit` and `jax.vmap` (there `lh.measure` "
            "works)."
        )
    for name in (name for name, value in (here or {}).items() if value is not None):
        expect_here(name, *arrays)


def jobs_of(chain: Chain, blocks: Any, wrt: Any, part: Any) -> list[Key]:
    """Every (block, wrt, part) that is asked for, in the order of the chain.

    Raises:
        KeyError: A block name that is not in the chain.
        TypeError: What is no name.
        ValueError: An unknown side or part.
    """
    names = chain.names if blocks is None else _several("blocks", blocks)
    for name in names:
        chain.index(name)
    sides, parts = _several("wrt", wrt, tuple(SIDES)), _several("part", part, PARTS)
    return [(b, w, p) for b in chain.names if b in names for w in sides for p in parts]


def _several(name: str, given: Any, known: tuple[str, ...] | None = None) -> tuple[Any, ...]:
    """At least one name, of those that are known."""
    words = several(name, given)
    if not words:
        raise TypeError(f"`{name}` must be a name or several, got {short(given)}.")
    wrong = [word for word in words if known is not None and word not in known]
    if wrong:
        raise ValueError(f"`{name}` takes {', '.join(map(repr, known or ()))}, got {wrong[0]!r}.")
    return words


def missing(matching: BackMatching | StreamMatching, block: str, kind: type[Side], *, asked: bool) -> str:
    """Why there is no such Hessian, or no wish for it; nothing where there is one. `asked`: the block was named."""
    variables = floating_leaves(kind.varied(matching.place(block)))
    if not kind.per_sample:
        return "" if size(variables) else "H_W does not exist: the block has no parameters"
    if not variables:
        return "H_z does not exist: the block's input holds integers"
    return "" if asked or size(floating_leaves(matching.params[block])) else UNASKED


def nothing(why: Iterable[str]) -> str:
    """In words, that none of it exists."""
    return f"nothing of what `blocks` and `wrt` ask for exists: {'; '.join(sorted(set(why)))}."


def chosen(samples: Any, samples_per_block: int, n: int) -> tuple[int, ...]:
    """Indices of the samples whose H_z are looked at one by one.

    Raises:
        ValueError: They are no indices, or their number is none.
    """
    if not is_concrete(samples):
        raise ValueError("`samples` must be indices that are known when the program is made, got traced ones.")
    if samples is not None:
        with at_once():
            return tuple(np.asarray(sample_indices(samples, n)[0]).tolist())
    count = np.asarray(samples_per_block)
    if count.shape != () or count.dtype.kind not in "iu" or count < 1:
        raise ValueError(f"`samples_per_block` must be a whole number of at least 1, got {samples_per_block!r}.")
    return tuple(np.unique(np.linspace(0, n - 1, min(int(count), n)).round().astype(int)).tolist())
