"""What `analyze` finds out of an operator by itself: everything where that is cheap, else the top and a quadrature.

A spectrum without structure whose order is large does not come whole within any number of products that a person waits
for. Both ends by 200 pairs of products tell the largest value, and of the smallest nothing: so the largest is taken to
its tolerance, and the rest of the products go into what they tell about all eigenvalues.
"""

import dataclasses

import numpy as np

from localhessian._progress import Progress, silent
from localhessian._types import Array, Key
from localhessian.linalg import (
    Declined,
    Dense,
    Density,
    GolubKahan,
    LinearMap,
    Spectrum,
    Structured,
    SymmetricOperator,
    spectral_density,
)

STARTS, STEPS = 2, 12
"""Of the quadrature; two starts are the fewest that tell an error."""
TOP = GolubKahan(which="largest", k=1, rtol=3e-3)
"""Its singular value to 0.3 %, by the residual; the error itself goes with the square of that."""
MAX_OPERATIONS = 8e10
"""Multiplications, over all samples of a row, that a dense decomposition may take by itself: seconds."""


@dataclasses.dataclass(frozen=True)
class Survey:
    """A method: `Structured()` where it finds something, `Dense()` within `MAX_OPERATIONS`, else the largest value."""

    def run(
        self,
        operator: LinearMap | SymmetricOperator,
        key: Key,
        vectors: int,
        start: Array | None = None,
        show: Progress = silent,
    ) -> Spectrum:
        """The whole spectrum, or its largest value."""
        structured, dense = Structured(), Dense(max_operations=MAX_OPERATIONS)
        try:
            return structured.attempt(operator, key, show)
        except Declined:
            method = dense if dense.fits(operator) else TOP
        return method.run(operator, key, vectors, start, show)

    def rest(self, operator: SymmetricOperator, found: Spectrum, key: Key) -> Density | None:
        """How the other eigenvalues are distributed, where only the largest was found."""
        if found.method != str(TOP) or np.all(found.complete):
            return None
        return spectral_density(operator, axis="log", probes=STARTS, steps=STEPS, key=key, throw=False)
