"""What a probe measures, by what it costs."""

import dataclasses
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np

from localhessian._tree import to_device
from localhessian._types import Array, Key
from localhessian.analysis._figures import Figures, topped_figures
from localhessian.analysis._measure import measured
from localhessian.analysis._measurement import Entry
from localhessian.analysis.rows import Key as RowKey
from localhessian.curvature import local_hessian
from localhessian.linalg import (
    GolubKahan,
    Hutchinson,
    Lanczos,
    Method,
    SymmetricOperator,
    condition_number,
    spectrum,
    trace,
)
from localhessian.network import SIDES, BackMatching

Vectors: TypeAlias = np.ndarray
"""Of each operator one, in a column."""
MIXED = 3.0
"""Parts of random directions beside one of the last eigenvectors. With less of them, or a residual of 1 %, the method
stays with an eigenvalue that another one has overtaken by a tenth (seen where they belong to different units)."""


class Preset(Protocol):
    """Figures of one kind."""

    @property
    def told(self) -> tuple[str, ...]:
        """The figures that a logger gets."""

    @property
    def kept(self) -> tuple[str, ...]:
        """Those that the history has."""

    def measured(
        self, matching: BackMatching, job: RowKey, samples: tuple[int, ...] | None, key: Key, start: Vectors | None
    ) -> tuple[Entry, Figures, Vectors | None]:
        """Of one local Hessian; and from where to start the next time."""


@dataclasses.dataclass(frozen=True)
class Cheap:
    """Traces and the largest eigenvalues, which start near where the last ones ended."""

    probes: int = 4
    rtol: float = 0.005
    """Of the largest singular value of R, by its residual; the error itself goes with the square of that."""
    max_matvecs: int = 40
    told = ("lambda_max", "trace", "effective_rank")
    kept = ("lambda_max", "trace", "trace_error", "effective_rank", "status")

    def measured(
        self, matching: BackMatching, job: RowKey, samples: tuple[int, ...] | None, key: Key, start: Vectors | None
    ) -> tuple[Entry, Figures, Vectors | None]:
        """Cost: `probes` products with the factor, and those of a Krylov method."""
        block, wrt, part = job
        operator = local_hessian(matching, block, wrt, part, samples=samples).prepare()
        key = jax.random.fold_in(key, matching.chain.index(block))
        settings: dict[str, Any] = {"which": "largest", "k": 1, "rtol": self.rtol, "max_matvecs": self.max_matvecs}
        method: Method = Lanczos(**settings) if operator.factor is None else GolubKahan(**settings)
        found = spectrum(operator, method, key=key, start=_begun(operator, start, key), vectors=1, throw=False)
        total = trace(operator, Hutchinson(self.probes), key=key)
        count = matching.samples if samples is None else len(samples)
        coupled = SIDES[wrt].per_sample and samples is None
        entry = Entry(block, wrt, part, operator.size, count, coupled, found.method)
        return entry, topped_figures(found, condition_number(found), total), np.asarray(found.vectors)


def _begun(operator: SymmetricOperator, start: Vectors | None, key: Key) -> Array:
    """Random vectors, and the last ones beside them; given in the first call too, so that later ones run the same."""
    shape = (operator.size, 1) if operator.batch is None else (operator.batch, operator.size, 1)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    fresh: Vectors = random.standard_normal(shape, np.float32)
    if start is not None:
        fresh = _unit(start.astype(np.float32)) + MIXED * _unit(fresh)
    return to_device(fresh, operator.dtype)


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-2, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


@dataclasses.dataclass(frozen=True)
class Full:
    """Everything that `lh.measure` tells: whole spectra where they are affordable, else the top and a quadrature."""

    told = ("rank", "lambda_max", "kappa_plus", "kappa_lower", "kappa_q05", "kappa_q95", "trace", "effective_rank")
    kept = tuple(field.name for field in dataclasses.fields(Figures))

    def measured(
        self, matching: BackMatching, job: RowKey, samples: tuple[int, ...] | None, key: Key, start: Vectors | None
    ) -> tuple[Entry, Figures, Vectors | None]:
        """Cost: that of `lh.measure`."""
        del start
        found = measured(matching, [job], samples or (), None, key)
        return found.entries[0], found[job], None


PRESETS: dict[str, Preset] = {"cheap": Cheap(), "full": Full()}
"""By name."""
