"""How figures differ from batch to batch: H_W of one batch is a sample."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from localhessian._arguments import short
from localhessian._brief import brief
from localhessian._grid import grid
from localhessian._optional import optional
from localhessian._tree import is_concrete
from localhessian.analysis._interval import Mean, interval
from localhessian.analysis._measurement import Measurement
from localhessian.analysis._table import number
from localhessian.analysis.rows import SYMBOLS, Analyzed, Key

FIGURES = (
    *("rank", "lambda_max", "lambda_min_nonzero", "kappa_plus", "kappa_lower", "kappa_q05", "kappa_q95"),
    *("trace", "stable_rank", "effective_rank", "top_on_mean", "kappa_inputs", "kappa_centered", "kappa_scaled"),
    *("gradient_top", "gradient_bottom"),
)
SHOWN = ("lambda_max", "kappa_plus", "kappa_q05", "trace", "effective_rank")
"""Of them, in the table."""


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """The mean of every figure over batches, with its 95 % interval; printed, a table.

    `spread["conv1", "params"]["kappa_plus"]` is a `localhessian.lab.Mean`: mean, low, high, and `runs`, the number of
    batches in which the figure is finite. Of condition numbers it is the geometric mean, with the interval of the
    logarithms.
    """

    figures: Mapping[Key, Mapping[str, Mean]]
    batches: int

    def __getitem__(self, where: tuple[str, ...]) -> Mapping[str, Mean]:
        """The figures of (block, wrt), or of (block, wrt, part)."""
        for key, told in self.figures.items():
            if key[: len(where)] == tuple(where) and len(where) > 1:
                return told
        known = ", ".join(sorted({f"({block!r}, {wrt!r})" for block, wrt, _ in self.figures}))
        raise KeyError(f"the spread has no entry {where!r}: it has {known}.")

    def to_dataframe(self) -> Any:
        """A row for each figure of each local Hessian: mean, low, high, runs. Needs pandas."""
        keys = ("block", "wrt", "part")
        records = [
            {**dict(zip(keys, key, strict=True)), "figure": name, **mean._asdict()}
            for key, told in self.figures.items()
            for name, mean in told.items()
        ]
        return optional("pandas").DataFrame(records, columns=[*keys, "figure", *Mean._fields])

    def __str__(self) -> str:
        """The table."""
        columns = {"block": "left", "side": "left", **dict.fromkeys(SHOWN, "left")}
        cells = [
            [key[0], SYMBOLS[key[1]], *(_told(told.get(name)) for name in SHOWN)] for key, told in self.figures.items()
        ]
        return "\n".join([*grid(columns, [("", cells)]), f"means over {self.batches} batches, 95 % intervals"])

    __repr__ = brief


def spread(found: Measurement | Sequence[Analyzed], /) -> Spread:
    r"""Mean and 95 % interval, over batches, of every figure: $\bar v \pm t_{0.975, k-1}\, s / \sqrt k$.

    H_W, and the condition numbers drawn from it, are those of the samples at hand. Over k batches of as many samples,
    drawn independently, the interval contains the mean over all such batches with 95 % (if figures, or logarithms of
    condition numbers, are normal over batches). It says nothing of larger batches, whose ranks are higher.

    Args:
        found: Reports of one network on several batches, or a measurement with a leading axis of batches, as of
            `jax.vmap` over them.

    Returns:
        The spread; a figure that fewer than two batches have has no interval.

    Raises:
        TypeError: It is neither, or traced.
        ValueError: There is one batch only; a measurement has no axis of batches, or several.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: z @ w), lh.Block("b", lambda w, z: z @ w)])
        >>> params = {"a": jnp.eye(2), "b": jnp.ones((2, 1))}
        >>> x, y = jax.random.normal(jax.random.key(0), (6, 4, 2)), jnp.zeros((6, 4, 1))
        >>> loss = lambda z, y: 0.5 * ((z - y) ** 2).sum(1)
        >>> found = jax.vmap(lambda x, y: lh.measure(chain, params, x, y, loss, blocks="a", wrt="params"))(x, y)
        >>> kappa = lh.spread(found)["a", "params"]["kappa_plus"]
        >>> bool(kappa.low < kappa.mean < kappa.high), kappa.runs
        (True, 6)
    """
    by_key, batches = _of_measurement(found) if isinstance(found, Measurement) else _of_reports(found)
    if batches < 2:
        raise ValueError(f"`found` must be of several batches, got {batches}: one is no sample of them.")
    means = {key: {name: _mean(name, values) for name, values in told.items()} for key, told in by_key.items()}
    return Spread({key: told for key, told in means.items() if any(mean.runs for mean in told.values())}, batches)


def _of_measurement(found: Measurement) -> tuple[dict[Key, dict[str, np.ndarray]], int]:
    if not is_concrete(found):
        raise TypeError("`found` must hold numbers, got traced ones: return the measurement, and spread it outside.")
    shape = np.shape(found.figures.status)
    if len(shape) != 2:
        raise ValueError(
            f"`found` must have one leading axis, of batches, got {len(shape) - 1}: measure them by one `jax.vmap`."
        )
    names = [name for name in FIGURES if hasattr(found.figures, name)]
    of = lambda i: {name: np.asarray(getattr(found.figures, name)[:, i], np.float64) for name in names}
    return {entry.key: of(i) for i, entry in enumerate(found.entries)}, shape[0]


def _of_reports(found: Any) -> tuple[dict[Key, dict[str, np.ndarray]], int]:
    if not isinstance(found, list | tuple) or not all(isinstance(one, Analyzed) for one in found):
        raise TypeError(f"`found` must be a measurement or a list of reports, got {short(found)}.")
    rows: dict[Key, list[Any]] = {}
    for report in found:
        for row in report.rows:
            rows.setdefault(row.key, []).append(row)
    names = [name for name in FIGURES if all(hasattr(row, name) for some in rows.values() for row in some)]
    return {
        key: {name: np.array([getattr(row, name) for row in some], np.float64) for name in names}
        for key, some in rows.items()
    }, len(found)


def _mean(name: str, values: np.ndarray) -> Mean:
    """Over the batches in which it is finite."""
    known = values[np.isfinite(values)]
    is_ratio = name.startswith("kappa")
    if len(known) < 2:
        return Mean(float(known[0]) if len(known) else math.nan, math.nan, math.nan, len(known))
    if not is_ratio:
        return interval(known, minimum=2)
    mean, low, high, runs = interval(np.log(known), minimum=2)
    return Mean(math.exp(mean), math.exp(low), _exp(high), runs)


def _exp(value: float) -> float:
    """Infinite where it is too large."""
    return math.inf if value > math.log(np.finfo(np.float64).max) else math.exp(value)


def _told(mean: Mean | None) -> str:
    if mean is None or math.isnan(mean.mean):
        return "-"
    return number(mean.mean) + ("" if math.isnan(mean.low) else f" [{number(mean.low)}, {number(mean.high)}]")


def stored(found: Spread) -> dict[str, Any]:
    """As JSON."""
    rows = [[*key, {name: list(mean) for name, mean in told.items()}] for key, told in found.figures.items()]
    return {"batches": found.batches, "figures": rows}


def restored(data: Any) -> Spread:
    """And back."""
    figures = {
        (block, wrt, part): {name: Mean(*mean) for name, mean in told.items()}
        for block, wrt, part, told in data["figures"]
    }
    return Spread(figures, int(data["batches"]))
