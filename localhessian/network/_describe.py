"""The blocks of a chain as a table of text."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from localhessian import _tree
from localhessian._types import Activations, Context, Params
from localhessian.network._leaves import check_arrays

_HEADS = ("block", "input", "output", "parameters", "share", "modules", "context")
_NUMBERS = (3, 4)
_MODULES = 5
"""So many modules of a block are named."""
_ARRAYS = 2
"""So many arrays of z are shown."""


def table(
    chain: Any,
    params: Mapping[str, Params],
    x: Activations,
    context: Context,
    uses: Mapping[str, str],
    notes: Sequence[str] = (),
) -> str:
    """A row for each block: shapes of z_{b-1} and z_b, parameters, which modules hold them, what it takes as context.

    Below stand what z carries besides the activations of one layer, and the notes.
    """
    check_arrays("`x`", x)
    check_arrays("`context`", context)
    activations = jax.eval_shape(chain.forward, dict(params), x, context)
    sizes = [_tree.size(params.get(name, ())) for name in chain.names]
    total = sum(sizes)
    rows = [
        (
            name,
            _short(before),
            _short(after),
            f"{size:,}",
            f"{size / total:.1%}" if total else "",
            _modules(params.get(name)),
            uses.get(name, ""),
        )
        for name, before, after, size in zip(chain.names, activations[:-1], activations[1:], sizes, strict=True)
    ]
    rows.append(("total", "", "", f"{total:,}", "", "", ""))
    shown = [i for i, head in enumerate(_HEADS) if i != _HEADS.index("modules") or any(row[i] for row in rows)]
    cells = [[row[i] for i in shown] for row in (_HEADS, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    sides = [str.rjust if i in _NUMBERS else str.ljust for i in shown]
    aligned = [[put(cell, width) for put, cell, width in zip(sides, row, widths, strict=True)] for row in cells]
    lines = ["  ".join(row).rstrip() for row in aligned]
    return "\n".join([*lines, *_carried(chain.names, activations), *notes])


def _modules(params: Params) -> str:
    """The parts of a block's parameters that are trees themselves: modules of those frameworks that nest them."""
    names = (
        [str(name) for name, inner in params.items() if isinstance(inner, Mapping)]
        if isinstance(params, Mapping)
        else []
    )
    more = f" and {len(names) - _MODULES} more" if len(names) > _MODULES else ""
    return ", ".join(names[:_MODULES]) + more


def _carried(names: Sequence[str], activations: Sequence[Activations]) -> Iterator[str]:
    """A sentence for each run of blocks between which z is of several arrays."""
    counts = [len(jax.tree.leaves(z)) for z in activations[1:-1]]
    at = 0
    for several, run in itertools.groupby(counts, lambda count: count > 1):
        carried = list(run)
        begin, at = at, at + len(carried)
        if several:
            count = f"{min(carried)}" if min(carried) == max(carried) else f"{min(carried)} to {max(carried)}"
            yield f"From `{names[begin]}` to `{names[at]}` z carries {count} arrays; H_z is by all of them."


def _short(tree: Any) -> str:
    """The first arrays of a tree."""
    leaves = [f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(tree)]
    return ", ".join(leaves[:_ARRAYS]) + (f" and {len(leaves) - _ARRAYS} more" if len(leaves) > _ARRAYS else "")
