"""The blocks of a chain as a table of text."""

from collections.abc import Mapping
from typing import Any

import jax

from localhessian import _tree
from localhessian._types import Activations, Context, Params
from localhessian.network._leaves import check_arrays

_HEADS = ("block", "input", "output", "parameters", "context")


def table(chain: Any, params: Mapping[str, Params], x: Activations, context: Context, uses: Mapping[str, str]) -> str:
    """One row for each block: name, shapes of z_{b-1} and z_b, number of parameters, what it takes as context."""
    check_arrays("`x`", x)
    check_arrays("`context`", context)
    activations = jax.eval_shape(chain.forward, dict(params), x, context)
    sizes = [_tree.size(params.get(name, ())) for name in chain.names]
    rows = [
        (name, _short(before), _short(after), f"{size:,}", uses.get(name, ""))
        for name, before, after, size in zip(chain.names, activations[:-1], activations[1:], sizes, strict=True)
    ]
    rows.append(("total", "", "", f"{sum(sizes):,}", ""))
    widths = [max(len(row[i]) for row in (_HEADS, *rows)) for i in range(len(_HEADS))]
    lines = [_line(_HEADS, widths), _line(["-" * width for width in widths], widths)]
    return "\n".join(line.rstrip() for line in [*lines, *(_line(row, widths) for row in rows)])


def _line(cells: Any, widths: list[int]) -> str:
    aligned = [
        cell.rjust(w) if i == 3 else cell.ljust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(aligned)


def _short(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    return ", ".join(f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in leaves)
