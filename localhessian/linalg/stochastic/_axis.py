"""The axis that a spectral density is shown on."""

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np

from localhessian.linalg.spectra import counted

TAIL = 8
"""Points between the cutoff and a logarithmic axis: what quantile condition numbers may reach down to."""
MARGIN = 0.02
"""The default axis reaches that share of its length beyond the extreme Ritz values, which lie within the spectrum."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """The settings of the result."""

    axis: str
    bins: int
    limits: tuple[float, float] | None
    rtol: float | None

    def relative_cutoff(self, dtype: Any, has_factor: bool) -> float:
        """The rank rule's cutoff on eigenvalues, relative to the largest."""
        return counted(dtype, has_factor, self.rtol) ** 2

    def edges(self, low: Any, high: Any, cutoff: Any, xp: ModuleType) -> Any:
        """Edges of the bins, `(s, bins + 1)`, for spectra that reach from `low` to `high`, `(s,)`."""
        places = xp.asarray(np.linspace(0, 1, self.bins + 1), dtype=cutoff.dtype)[None, :]
        if self.limits is not None:
            low, high = (xp.full_like(cutoff, limit) for limit in self.limits)
        elif self.axis == "log":
            # What is at the cutoff is uncertain; a spectrum without a positive value gets an axis all the same.
            high = xp.where(high > cutoff, high, 10 * cutoff)
            low = xp.maximum(xp.where(xp.isfinite(low), low, high / 10), cutoff)
            ratio = xp.maximum((high / low) ** MARGIN, 1 + 2 * MARGIN)
            low, high = xp.maximum(low / ratio, cutoff), high * ratio
        else:
            margin = xp.maximum(MARGIN * (high - low), 2 * MARGIN * xp.maximum(xp.abs(low), xp.abs(high)))
            margin = xp.where(margin > 0, margin, 1)
            low, high = low - margin, high + margin
        low, high = low[:, None], high[:, None]
        return low * (high / low) ** places if self.axis == "log" else low + (high - low) * places

    def tail(self, edges: Any, cutoff: Any, xp: ModuleType) -> Any:
        """Points below the first edge of a logarithmic axis, `(s, TAIL)`; none of a linear one."""
        if self.axis == "linear":
            return edges[:, :0]
        places = xp.asarray(np.arange(1, TAIL + 1) / (TAIL + 1), dtype=cutoff.dtype)[None, :]
        low = cutoff[:, None]
        return low * xp.maximum(edges[:, :1] / low, 1) ** places

    def points(self, edges: Any, cutoff: Any, xp: ModuleType) -> Any:
        """Where the distribution is looked at: minus the cutoff, the cutoff, the tail, the edges."""
        return xp.concatenate([-cutoff[:, None], cutoff[:, None], self.tail(edges, cutoff, xp), edges], axis=1)
