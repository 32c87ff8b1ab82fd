"""One local Hessian's row in a report, and the spectrum behind it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from localhessian._brief import by_value
from localhessian.curvature import Part
from localhessian.network import Wrt

COLUMNS = (
    "block",
    "wrt",
    "part",
    "size",
    "samples",
    "coupled",
    "rank",
    "lambda_max",
    "lambda_min_nonzero",
    "kappa_plus",
    "kappa_lower",
    "kappa_upper",
    "kappa_q05",
    "kappa_q95",
    "method",
    "matvecs",
    "converged",
    "status",
    "note",
    "trace",
    "trace_error",
    "effective_rank",
    "kappa_q05_lower",
    "kappa_q05_upper",
    "kappa_q95_lower",
    "kappa_q95_upper",
    "top_on_mean",
    "top_channel",
    "top_channel_share",
    "kappa_inputs",
    "kappa_centered",
    "kappa_scaled",
    "gradient_top",
    "gradient_bottom",
    "stable_rank",
)
Key = tuple[str, Wrt, Part]
"""(block, wrt, part)."""
SYMBOLS: Mapping[Wrt, str] = {"params": "H_W", "input": "H_z"}
"""Of the sides."""
INTERVALS = {
    "kappa_plus": ("kappa_lower", "kappa_upper"),
    "kappa_q05": ("kappa_q05_lower", "kappa_q05_upper"),
    "kappa_q95": ("kappa_q95_lower", "kappa_q95_upper"),
}
"""Columns with the columns that bound them."""


@by_value
@dataclasses.dataclass(frozen=True)
class Row:
    """One local Hessian; of an uncoupled H_z, medians over those of the samples analyzed that have a value."""

    block: str
    wrt: Wrt
    part: Part
    size: int
    """Order of the matrix (of an uncoupled H_z: of each sample's)."""
    samples: int
    """Samples that entered: of H_W and a coupled H_z the batch, of an uncoupled H_z those analyzed one by one."""
    coupled: bool
    rank: float
    """By the rank rule; of an incomplete spectrum the certified part, of a quadrature the lower end of its interval;
    NaN where there is no matrix."""
    lambda_max: float
    lambda_min_nonzero: float
    """Certified; NaN where no non-zero eigenvalue is."""
    kappa_plus: float
    """lambda_max over the smallest non-zero eigenvalue; NaN where unknown, then `kappa_lower` bounds it."""
    kappa_lower: float
    kappa_upper: float
    kappa_q05: float
    """Quantile condition number: lambda_max over the 5 % quantile of the non-zero eigenvalues."""
    kappa_q95: float
    """lambda_max over the 95 % quantile: how far the largest eigenvalues stand out."""
    method: str
    matvecs: int
    converged: bool
    status: str = "CONVERGED"
    """Name of the `localhessian.Status` that the condition number ended with; of several samples the worst."""
    note: str = ""
    """In words, why a figure is missing or doubtful."""
    trace: float = math.nan
    """The sum of the eigenvalues; NaN where neither all of them nor a quadrature is there."""
    trace_error: float = math.nan
    """Standard error of the trace; 0 of a whole spectrum."""
    effective_rank: float = math.nan
    """trace / lambda_max."""
    kappa_q05_lower: float = math.nan
    """A quadrature's kappa_q05 lies between these (three standard errors, and the error of the quadrature)."""
    kappa_q05_upper: float = math.nan
    kappa_q95_lower: float = math.nan
    kappa_q95_upper: float = math.nan
    top_on_mean: float = math.nan
    """Of an H_W by `lh.analyze`: how much of the top eigenvector lies along the mean of the layer's input, 0 to 1."""
    top_channel: int = -1
    """The output channel (of the last block the class) that has most of the top eigenvector."""
    top_channel_share: float = math.nan
    """How much it has, 0 to 1; NaN where another eigenvalue is more than half as large."""
    kappa_inputs: float = math.nan
    """Condition number of the second moments C of the layer's inputs; without an activation behind it, of H_W."""
    kappa_centered: float = math.nan
    """The same, on as many directions, if the mean were taken from the inputs."""
    kappa_scaled: float = math.nan
    """The same if every input were divided by its root mean square."""
    gradient_top: float = math.nan
    """Share of the squared gradient in the eigenspaces of more than a tenth of lambda_max."""
    gradient_bottom: float = math.nan
    """Share of the squared gradient in the eigenspaces of less than a thousandth of lambda_max."""
    stable_rank: float = math.nan
    """||H||_F^2 / lambda_max^2; like the trace by a quadrature where not all eigenvalues are there."""

    @property
    def has_figures(self) -> bool:
        """Whether there is a matrix, and something is known of it."""
        return not math.isnan(self.lambda_max)

    @property
    def is_whole(self) -> bool:
        """Whether every eigenvalue is known; else the rank is a lower bound."""
        return self.trace_error == 0

    @property
    def symbol(self) -> str:
        """H_W or H_z."""
        return SYMBOLS[self.wrt]

    @property
    def key(self) -> Key:
        """(block, wrt, part)."""
        return self.block, self.wrt, self.part


@by_value
@dataclasses.dataclass(frozen=True)
class RowSpectrum:
    """The eigenvalues behind a row; with a leading axis of samples for an uncoupled H_z."""

    eigenvalues: np.ndarray
    multiplicities: np.ndarray
    kappas: np.ndarray
    """kappa_plus of each sample, shape `(s,)`; one number otherwise."""


@runtime_checkable
class Analyzed(Protocol):
    """What tables, figures and pages read of a report."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows."""

    @property
    def spectra(self) -> Mapping[Key, RowSpectrum]:
        """The eigenvalues behind the rows."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """Provenance."""
