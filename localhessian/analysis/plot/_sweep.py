"""A sweep as lines with bands, or as a map of colors."""

from typing import Any

import numpy as np
from scipy.special import stdtrit

from localhessian._arguments import expect, short
from localhessian._optional import optional
from localhessian._status import quietly
from localhessian.analysis.plot._canvas import COLORS, canvas

_LOGARITHMIC = ("kappa", "lambda", "trace")
"""Figures whose ratios are what matters."""
_UNITS = {"kappa_plus": r"$\kappa^+$", "lambda_max": r"$\lambda_{max}$", "lambda_min_nonzero": r"$\lambda_{min}^+$"}


def sweep(
    dataset: Any,
    /,
    *,
    x: str,
    y: str,
    hue: str | None = None,
    over: str = "seed",
    columns: int | None = None,
    ax: Any = None,
) -> Any:
    """Draw a figure of a sweep along one axis, or over two.

    Lines: `y` is a variable and `hue` a dimension, a line for each of its values. Bands are 95 % intervals of the mean
    over the dimension `over`, by Student's t; on a logarithmic axis of the geometric mean. A hollow marker says that a
    value there has a status other than CONVERGED, an arrow that one is infinite, which the mean leaves out.

    Map: `y` is a dimension and `hue` the variable, its mean over `over` as colors; where the status is not CONVERGED a
    dot, where a value is infinite an arrow, where none is known nothing.

    Args:
        dataset: From `lh.sweep` (or any with such dimensions), with one value left of every dimension that is not
            drawn: `dataset.sel(block="layer0", wrt="input")`.
        x: The dimension along the figure.
        y: A variable; or the other dimension of a map.
        hue: A dimension to tell lines apart; or the variable of a map.
        over: The dimension to take means over, where the dataset has it.
        columns: 1 or 2, as wide as columns of a paper; None for a screen. An `ax` given keeps its size.
        ax: Of matplotlib; None makes one.

    Returns:
        The `ax`.

    Raises:
        TypeError: `dataset` or `ax` is none, or a name is no word.
        ValueError: It has no such variable or dimension, or more dimensions than are drawn; there is no such width.
        ImportError: matplotlib is not installed.
    """
    if not all(hasattr(dataset, part) for part in ("data_vars", "sizes", "sel")):
        raise TypeError(f"`dataset` must be an xarray.Dataset, as `lh.sweep` returns one, got {short(dataset)}.")
    for name, word in (("x", x), ("y", y), ("over", over), ("hue", "" if hue is None else hue)):
        expect(name, word, str, "a name")
    is_map = y in dataset.sizes
    variable, other = (hue, y) if is_map else (y, hue)
    drawn = _prepared(dataset, variable, "hue" if is_map else "y", {"x": x, ("y" if is_map else "hue"): other}, over)
    with canvas(ax, columns) as axes:
        if is_map:
            _map(axes, drawn, x, y, over)
        else:
            _lines(axes, drawn, x, hue, over)
    return axes


def _prepared(dataset: Any, variable: str | None, role: str, dims: dict[str, str | None], over: str) -> Any:
    """The variable with its status, and nothing left that is not drawn."""
    if variable not in dataset.data_vars:
        raise ValueError(
            f"`{role}` must name a variable of the dataset ({', '.join(dataset.data_vars)}), got {variable!r}."
        )
    drawn = dataset[[variable, *(["status"] if "status" in dataset and variable != "status" else [])]]
    sizes = drawn[variable].sizes
    for name, dim in dims.items():
        if dim is not None and dim not in sizes:
            raise ValueError(f"`{name}` must name a dimension of `{variable}` ({', '.join(sizes)}), got {dim!r}.")
    left = [dim for dim in sizes if dim not in {*dims.values(), over} and sizes[dim] > 1]
    if left:
        raise ValueError(
            f"`dataset` has several values along {', '.join(left)}: choose one by `dataset.sel({left[0]}=...)`."
        )
    order = [dims["x"], *(dim for name, dim in dims.items() if name != "x" and dim), *([over] if over in sizes else [])]
    drawn = drawn.squeeze([dim for dim in sizes if dim not in order])
    return drawn.transpose(*order, missing_dims="ignore").rename({variable: "value"}).assign_attrs(variable=variable)


@quietly()
def _means(drawn: Any, over: str, log: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper end, and where a value is unconverged or infinite; `over` is the last axis, if any."""
    values = drawn.value.values.astype(float)
    status = drawn.status.values if "status" in drawn else np.zeros(values.shape, int)
    if over not in drawn.value.sizes:
        values, status = values[..., None], status[..., None]
    finite = np.isfinite(values)
    scaled = np.log(values) if log else values
    count = finite.sum(axis=-1)
    mean = np.where(finite, scaled, 0).sum(axis=-1) / np.where(count > 0, count, np.nan)
    spread = np.sqrt(
        np.where(finite, (scaled - mean[..., None]) ** 2, 0).sum(axis=-1) / np.maximum(count - 1, 1) / count
    )
    half = np.where(count > 1, stdtrit(np.maximum(count - 1, 1), 0.975) * spread, 0)
    back = np.exp if log else np.asarray
    unconverged = ((status != 0) & ~np.isnan(values)).any(axis=-1)
    return back(mean), back(mean - half), back(mean + half), unconverged, np.isinf(values).any(axis=-1)


def _lines(ax: Any, drawn: Any, x: str, hue: str | None, over: str) -> None:
    places, is_word = _places(drawn[x].values)
    log = _is_ratio(drawn.attrs["variable"], drawn.value.values)
    shared = ax.get_xaxis_transform()
    for i, label in enumerate([None] if hue is None else drawn[hue].values):
        line = drawn if hue is None else drawn.isel({hue: i})
        mean, low, high, unconverged, infinite = _means(line, over, log)
        color = COLORS[i % len(COLORS)]
        ax.plot(places, mean, color=color, linewidth=2, label=None if hue is None else f"{hue} = {_word(label)}")
        ax.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
        for some, face in ((~unconverged, color), (unconverged, "white")):
            ax.plot(places[some], mean[some], "o", color=color, markerfacecolor=face, markersize=6)
        ax.plot(
            places[infinite],
            np.full(infinite.sum(), 0.97),
            marker=r"$\uparrow$",
            color=color,
            markersize=11,
            linestyle="none",
            transform=shared,
        )
    if log:
        ax.set_yscale("log")
    _axis(ax.xaxis, ax.set_xscale, drawn[x], places, is_word)
    ax.set_ylabel(_UNITS.get(drawn.attrs["variable"], drawn.attrs["variable"]))
    if hue is not None:
        ax.legend()


def _map(ax: Any, drawn: Any, x: str, y: str, over: str) -> None:
    log = _is_ratio(drawn.attrs["variable"], drawn.value.values)
    mean, _, _, unconverged, infinite = _means(drawn, over, log)
    norms = optional("matplotlib.colors")
    columns, rows = np.arange(drawn.sizes[x]), np.arange(drawn.sizes[y])
    norm = norms.LogNorm() if log and np.isfinite(mean).any() else None
    mesh = ax.pcolormesh(columns, rows, mean.T, norm=norm, cmap="viridis", shading="nearest")
    for where, marker in ((unconverged & ~infinite, "."), (infinite, r"$\uparrow$")):
        at = np.argwhere(where)
        ax.plot(
            at[:, 0],
            at[:, 1],
            linestyle="none",
            marker=marker,
            color="white",
            markersize=9,
            markeredgecolor="black",
            markeredgewidth=0.5,
        )
    for dim, ticks in ((x, ax.set_xticks), (y, ax.set_yticks)):
        every = max(1, drawn.sizes[dim] // 10)
        ticks(np.arange(0, drawn.sizes[dim], every), [_word(value) for value in drawn[dim].values[::every]])
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.figure.colorbar(mesh, ax=ax, label=_UNITS.get(drawn.attrs["variable"], drawn.attrs["variable"]))


def _places(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """Where the values of an axis lie; words one after the other."""
    is_word = values.dtype.kind not in "fiu"
    return (np.arange(len(values)) if is_word else values), is_word


def _axis(axis: Any, set_scale: Any, coordinate: Any, places: np.ndarray, is_word: bool) -> None:
    axis.set_label_text(coordinate.name)
    if is_word:
        axis.set_ticks(places, [_word(value) for value in coordinate.values])
    elif _is_geometric(places):
        set_scale("log")


def _is_geometric(values: np.ndarray) -> bool:
    """Whether the ratios of neighbours are nearer to equal than their differences."""
    if len(values) < 3 or not (values > 0).all():
        return False
    uneven = lambda steps: np.ptp(steps) / max(np.abs(steps).max(), 1e-300)
    return bool(uneven(np.diff(np.log(values))) < uneven(np.diff(values)))


def _is_ratio(variable: str, values: np.ndarray) -> bool:
    known = values[np.isfinite(values)]
    return variable.rsplit(".", 1)[-1].startswith(_LOGARITHMIC) and len(known) > 0 and bool((known > 0).all())


def _word(value: Any) -> str:
    return (f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)).replace("$", r"\$")
