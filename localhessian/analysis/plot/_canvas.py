"""What figures are drawn on: the style, the widths of papers, the picture that a notebook shows."""

import contextlib
import functools
import importlib.resources
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localhessian._arguments import expect, short
from localhessian._files import whole
from localhessian._optional import optional

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Those of the style, for who draws by hand."""
INCHES = {1: 3.4, 2: 7.0}
"""How wide figures of one and of two columns of a paper are."""
SCREEN = 7.0
PAPER = {"font.size": 7, "lines.linewidth": 1.0, "lines.markersize": 3}
"""Of a figure that is as wide as a column."""


@contextlib.contextmanager
def style(columns: int | None = None) -> Iterator[None]:
    """Within it, things are drawn as the style file says; `columns`: for a paper."""
    where = importlib.resources.files("localhessian.analysis.plot") / "localhessian.mplstyle"
    with importlib.resources.as_file(where) as file:
        optional("matplotlib.style")
        with optional("matplotlib").style.context([file, PAPER] if columns else file):
            yield


def check_columns(columns: Any) -> None:
    """Refuse what is no width.

    Raises:
        ValueError: it is none.
    """
    if columns is not None and not (type(columns) is int and columns in INCHES):
        raise ValueError(f"`columns` must be 1 or 2, of a paper, or None, for a screen; got {short(columns)}.")


@contextlib.contextmanager
def canvas(ax: Any, columns: int | None) -> Iterator[Any]:
    """What is drawn within has the style.

    Yields:
        The `ax` given, or one of a figure of its own.

    Raises:
        TypeError: `ax` is none.
    """
    check_columns(columns)
    if ax is not None:
        expect("ax", ax, optional("matplotlib.axes").Axes, "an `ax` of matplotlib, or None")
    with style(columns):
        yield new_axes(columns) if ax is None else ax


def new_axes(columns: int | None = None) -> Any:
    """An `ax` of a figure of its own, that a notebook shows."""
    width = SCREEN if columns is None else INCHES[columns]
    drawn = optional("matplotlib.figure").Figure(figsize=(width, 0.64 * width), layout="constrained")
    return shown(drawn.add_subplot(), drawn)


def png(drawn: Any, dpi: int = 100) -> bytes:
    """The picture, for a notebook."""
    out = io.BytesIO()
    drawn.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def shown(drawn: Any, picture: Any = None) -> Any:
    """The figure, or the `ax` of one, that a notebook shows as a picture at the end of a cell, without any magic."""
    drawn._repr_png_ = functools.partial(png, drawn if picture is None else picture)
    return drawn


def write_figure(drawn: Any, path: str | Path) -> None:
    """Write it whole or not at all; the ending chooses the format, without one it is png."""
    path = Path(path)
    path = path if path.suffix else path.with_name(f"{path.name}.png")
    with style(), whole(path) as part:
        drawn.savefig(part, dpi=150, format=path.suffix.removeprefix("."))


def plain(text: str) -> str:
    """A name as it is: to matplotlib a dollar begins mathematics."""
    return text.replace("$", r"\$")
