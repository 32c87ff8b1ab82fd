"""The eigenvalues behind rows."""

from typing import Any

from localhessian._status import quietly
from localhessian.analysis.plot._canvas import COLORS, canvas, plain
from localhessian.analysis.plot._drawn import Series, legend, quantity, say_nothing, series_of
from localhessian.analysis.rows import FLOOR, Analyzed, Labeled, Row, curve, distinct, fitted
from localhessian.network import Wrt

NAME = 28
"""Characters of the name of a block."""
_STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))


@quietly()
def spectrum(
    reports: Analyzed | Labeled[Analyzed],
    /,
    *,
    blocks: Any = None,
    wrt: Wrt = "params",
    part: str | None = None,
    columns: int | None = None,
    ax: Any = None,
) -> Any:
    """Draw eigenvalues over the largest, from the largest down, by their share of the dimension.

    Of an uncoupled H_z the median over samples. What is not drawn up to 1 is zero, or was not computed.

    Args:
        reports: A report, or several by the name of their network or by (network, stage).
        blocks: A name or names; None for the one in the middle of each network. The legend names each.
        wrt: `"params"` for H_W, `"input"` for H_z.
        part: Of the local Hessian; None for the first that a report has.
        columns: 1 or 2, as wide as columns of a paper; None for a screen. An `ax` given keeps its size.
        ax: Of matplotlib; None makes one.

    Returns:
        The `ax`.

    Raises:
        TypeError: `reports`, `blocks` or `ax` is none.
        ValueError: There is no such side, width or block.
        ImportError: matplotlib is not installed.
    """
    found = series_of(reports, wrt, blocks, part)
    with canvas(ax, columns) as axes:
        lines = [(one, row) for one in found for row in _rows(one, blocks)]
        names = list(dict.fromkeys(row.block for _, row in lines))
        for i, (one, row) in enumerate(lines):
            share, values = curve(one.spectra[row.key], row.size)
            label = _label(one, row) if len(names) > 1 else one.look["label"] or "_"
            axes.plot(share, values, label=label, **_look(one, i, len(found) == 1))
        if len(names) == 1:
            axes.set_title(f"block {plain(_short(*lines[0]))}")
        axes.set_yscale("log")
        axes.set_ylim(FLOOR, 2)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the dimension")
        axes.set_ylabel(rf"$\lambda\,/\,\lambda_{{max}}${quantity('', wrt)}")
        if not lines:
            say_nothing(axes)
        legend(axes)
    return axes


def _rows(one: Series, blocks: Any) -> list[Row]:
    """Those asked for, or the one in the middle."""
    there = [row for row in one.rows if row.key in one.spectra and row.lambda_max > 0]
    return there if blocks is not None else there[len(there) // 2 :][:1]


def _label(one: Series, row: Row) -> str:
    """The report and the block."""
    return plain(": ".join(filter(None, (str(one.label), _short(one, row)))))


def _short(one: Series, row: Row) -> str:
    """The name of a block without what all of the network's begin with."""
    names = [other.block for other in one.rows]
    return fitted(distinct(names, NAME)[names.index(row.block)], NAME)


def _look(one: Series, i: int, is_alone: bool) -> dict[str, Any]:
    """Of one report colors tell blocks apart."""
    if is_alone:
        return {"color": COLORS[i % len(COLORS)], "linestyle": _STYLES[i // len(COLORS) % len(_STYLES)]}
    return {name: one.look[name] for name in ("color", "linestyle")}
