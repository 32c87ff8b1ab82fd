"""What `analyze` finds out of an operator by itself: everything where that is cheap, else the top and a quadrature.

A spectrum without structure whose order is large does not come whole within any number of products that a person waits
for. Both ends by 200 pairs of products tell the largest value, and of the smallest nothing: so the largest is taken to
its tolerance, and the rest of the products go into what they tell about all eigenvalues.
"""

import contextlib
import dataclasses

import jax
import numpy as np

from localhessian._progress import Progress, silent
from localhessian._tree import is_concrete
from localhessian._types import Array, Key
from localhessian.analysis.rows import Key as RowKey
from localhessian.curvature import local_hessian
from localhessian.linalg import (
    Declined,
    Dense,
    Density,
    GolubKahan,
    Krylov,
    Lanczos,
    Method,
    Operator,
    Spectrum,
    Streamed,
    Structure,
    Structured,
    spectral_density,
    spectrum,
)
from localhessian.network import BackMatching

STARTS, STEPS = 2, 12
"""Of the quadrature; two starts are the fewest that tell an error."""
TOP = GolubKahan(which="largest", k=1, rtol=3e-3)
"""Its singular value to 0.3 %, by the residual; the error itself goes with the square of that."""
ENDS = Lanczos(which="both", k=1, rtol=3e-3, basis_size=32)
"""The same without a factor, by the eigenvalue's residual; and the smallest, which tells whether it is negative."""
STREAMED = Lanczos(which="largest", k=1, rtol=3e-3)
"""The largest alone, over a stream: vectors of a factor would be as long as the data."""
MAX_OPERATIONS = 8e10
"""Multiplications, over all samples of a row, that a dense decomposition may take by itself: seconds."""
TRACED_OPERATIONS = 1e10
"""The same inside a compiled program, whose SVDs in float32 take several times as long, and stand there many times."""


def top_of(operator: Operator) -> Krylov:
    """The method for the largest eigenvalue where the whole spectrum is too dear."""
    if operator.factor is not None:
        return TOP
    return STREAMED if isinstance(operator, Streamed) and operator.semidefinite else ENDS


@dataclasses.dataclass(frozen=True)
class Survey:
    """A method: `Structured()` where it finds something, `Dense()` within limits, else the largest value.

    Under transformations `Structured()` declines what it cannot find in a traced operator.
    """

    max_operations: float
    structure: Structure | None = dataclasses.field(default=None, compare=False, repr=False)
    """As it was found in the operator already."""

    def run(
        self,
        operator: Operator,
        key: Key,
        vectors: int,
        start: Array | None = None,
        show: Progress = silent,
    ) -> Spectrum:
        """The whole spectrum, or its largest value."""
        structured, dense = Structured(), Dense(max_operations=self.max_operations)
        with contextlib.suppress(Declined):  # a stream may break off what its first batch promised
            if self.structure is not None:
                return structured.decompose(self.structure, operator, show)
            return structured.attempt(operator, key, show)
        method = dense if dense.fits(operator) else top_of(operator)
        return method.run(operator, key, vectors, start, show)

    def rest(self, operator: Operator, found: Spectrum, key: Key) -> Density | None:
        """How the other eigenvalues are distributed, where only the largest was found."""
        if found.method not in (str(TOP), str(ENDS), str(STREAMED)) or (is_concrete(found) and np.all(found.complete)):
            return None
        return spectral_density(operator, axis="log", probes=STARTS, steps=STEPS, key=key, throw=False)


def examined(
    matching: BackMatching, job: RowKey, samples: tuple[int, ...] | None, method: Method | None, key: Key
) -> tuple[Spectrum, Density | None]:
    """The spectrum of one local Hessian, and what a quadrature tells beside it where it is not whole.

    Args:
        matching: The network at its point; under transformations traced.
        job: (block, wrt, part).
        samples: Of an uncoupled H_z, which ones; None: the whole batch.
        method: None leaves it to a `Survey`.
        key: Of the analysis; each block has its own.
    """
    block, wrt, part = job
    key = jax.random.fold_in(key, matching.chain.index(block))
    operator = local_hessian(matching, block, wrt, part, samples=samples)
    if method is not None:
        return spectrum(operator, method, key=key, throw=False), None
    survey = Survey(MAX_OPERATIONS if is_concrete(matching) else TRACED_OPERATIONS)
    found = spectrum(operator, survey, key=key, throw=False)
    return found, survey.rest(operator, found, key)


def named(found: Spectrum, rest: Density | None) -> str:
    """What the figures come from."""
    return (
        found.method if rest is None else f"{found.method} + spectral_density(probes={rest.probes}, steps={rest.steps})"
    )
