"""The sizes of a run, and which Ritz values are wanted."""

import dataclasses
from typing import Any, Literal

from localhessian._tree import pytree
from localhessian.linalg.krylov._arithmetic import Arithmetic
from localhessian.linalg.operators import skewed

Which = Literal["both", "largest", "smallest"]
"""Ends of a spectrum."""
ROWS = 32
"""A basis has room for at least this many vectors; a space that fits is seen whole.

Not for the largest end alone: there a shorter basis needs hardly more products, and orthogonalization along a long one
outweighs them.
"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of a run."""

    which: Which
    k: int
    order: int
    """The dimension of the space."""
    block: int
    """Vectors in a step."""
    size: int
    """Rows of the largest basis, a multiple of the block."""
    keep: int
    """How many Ritz vectors survive a restart."""
    steps: int
    """The budget."""
    whole: bool
    """Whether the basis has room for the whole space."""
    rtol: float
    eps: float
    """Of the arithmetic."""
    cutoff: float = 0.0
    """Singular values below it, relative to the largest, count as zero."""
    least: int = 1
    """Steps that are made even where every wanted value is there sooner."""

    @property
    def skewed(self) -> float:
        """Relative: between rounding and a difference that matters."""
        return skewed(self.eps)

    def tolerance(self, value: Any, scale: Any, floor: float, on: Arithmetic) -> Any:
        """The residual norms (s, k) that are small enough: relative, or what rounding leaves of `scale`, (s,)."""
        return on.xp.maximum(self.rtol * on.xp.abs(value), floor * self.eps * scale[:, None])

    def settled(self, values: Any, errors: Any, count: Any, scale: Any, floor: float, on: Arithmetic) -> Any:
        """Which problems (s,) have every wanted value, by the residuals that the recurrence estimates."""
        chosen = self.chosen(count, values.shape[1], on)
        value, error = on.pick(values, chosen.places), on.pick(errors, chosen.places)
        # The recomputed residual, which judges, differs by rounding.
        rounding = floor * self.eps * scale[:, None]
        allowed = on.xp.maximum(self.rtol * on.xp.abs(value) - rounding, 0.9 * rounding)
        ready = (~chosen.real | (error <= allowed)).all(axis=1)
        ends = 2 * self.k if self.which == "both" else self.k
        return ready & (chosen.real.sum(axis=1) >= min(ends, self.order))

    def chosen(self, count: Any, rows: int, on: Arithmetic) -> "Wanted":
        """Which of `rows` ascending Ritz values are returned, `count` of which are real: all, of the whole space."""
        whole = rows >= self.order
        return wanted(self.which, self.order if whole else self.k, count, rows, whole, on)

    def kept(self, count: Any, on: Arithmetic) -> "Wanted":
        """Which Ritz values of a full basis survive a restart."""
        if self.which != "both":
            return wanted(self.which, self.keep, count, self.size, False, on)
        half = self.keep // 2
        low = wanted("smallest", half, count, self.size, False, on)
        high = wanted("largest", self.keep - half, count, self.size, False, on)
        places = on.xp.concatenate([low.places, high.places], axis=1)
        return Wanted(places, on.xp.concatenate([low.real, high.real & (high.places >= half)], axis=1))


@pytree
class Wanted:
    """Which Ritz pairs are returned: places into the ascending values, `(s, k)`, and which of them are real."""

    places: Any
    real: Any


def wanted(which: Which, k: int, count: Any, rows: int, everything: bool, on: Arithmetic) -> Wanted:
    """Places of the wanted values among `count` ascending ones (those after are empty slots)."""
    xp = on.xp
    slots = xp.arange(rows, dtype=count.dtype)[None, :]
    k = min(k, rows)
    low = slots[:, :k] + 0 * count[:, None]
    high = slots[:, :k] + count[:, None] - k
    if which == "largest" or everything:
        places, real = high, high >= 0
    elif which == "smallest":
        places, real = low, low < count[:, None]
    else:
        places = xp.concatenate([low, high], axis=1)
        real = xp.concatenate([low < xp.minimum(count[:, None], high[:, :1]), high >= 0], axis=1)
    return Wanted(xp.minimum(xp.maximum(places, 0), rows - 1), real)


def take_weights(weights: Any, chosen: Wanted, on: Arithmetic) -> Any:
    """The columns (s, K, k) of the chosen Ritz vectors; zero where there is none."""
    xp = on.xp
    return xp.where(chosen.real[:, None, :], xp.take_along_axis(weights, chosen.places[:, None, :], 2), 0)
