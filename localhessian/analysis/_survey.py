"""What `analyze` finds out of an operator by itself: everything where that is cheap, else the top and a quadrature.

A spectrum without structure whose order is large does not come whole within any number of products that a person waits
for. Both ends by 200 pairs of products tell the largest value, and of the smallest nothing: so the largest is taken to
its tolerance, from a random start whose first steps tell about all eigenvalues.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

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
    LinearMap,
    Method,
    Operator,
    Spectrum,
    Streamed,
    Structure,
    Structured,
    SymmetricOperator,
    are_alike,
    contains_convolution,
    gram,
    in_turn,
    spectral_density,
    spectrum,
)
from localhessian.network import BackMatching

STEPS = 24
"""Before a restart, which a quadrature reads: one start of so many steps resolves twice as much as two of half."""
TOP = GolubKahan(which="largest", k=1, rtol=3e-3, basis_size=STEPS, min_matvecs=STEPS)
"""Its singular value to 0.3 %, by the residual; the error itself goes with the square of that."""
ENDS = Lanczos(which="both", k=1, rtol=3e-3, basis_size=32, min_matvecs=STEPS)
"""The same without a factor, by the eigenvalue's residual; and the smallest, which tells whether it is negative."""
STREAMED = Lanczos(which="largest", k=1, rtol=3e-3, basis_size=STEPS, min_matvecs=STEPS)
"""The largest alone, over a stream: vectors of a factor would be as long as the data."""
QUADRATURE = "spectral_density"
"""In the `method` of rows that have one."""
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


def rest_of(found: Spectrum) -> Density | None:
    """How the other eigenvalues are distributed, where a `Survey` found the largest only."""
    whole = is_concrete(found) and np.asarray(found.complete).all()
    if whole or found.method not in (str(TOP), str(ENDS), str(STREAMED)):
        return None
    return spectral_density(found, axis="log", throw=False)


Asked = tuple[RowKey, tuple[int, ...] | None]
"""(block, wrt, part), and of an uncoupled H_z which samples; None: the whole batch."""
Examined = tuple[Spectrum, Density | None]
"""The spectrum of one local Hessian, and what a quadrature tells beside it where it is not whole."""


def examined(matching: BackMatching, asked: Sequence[Asked], method: Method | None, key: Key) -> list[Examined]:
    """The spectra of some local Hessians.

    Args:
        matching: The network at its point; under transformations traced.
        asked: Which ones.
        method: None leaves it to a `Survey`; under transformations operators that are alike run as one.
        key: Of the analysis; each block has its own, those that run as one that of the first.
    """
    found: dict[RowKey, Examined] = {}
    made = ((job, local_hessian(matching, *job, samples=samples)) for job, samples in asked)
    for group in ([one] for one in made) if method or is_concrete(matching) else _alike(matching, made):
        (job, operator), *others = group
        own = jax.random.fold_in(key, matching.chain.index(job[0]))
        if method is not None:
            examples: list[Examined] = [(spectrum(operator, method, key=own, throw=False), None)]
        elif not others:
            examples = [_surveyed(operator, own)]
        else:
            examples = in_turn(functools.partial(_surveyed_factor, key=own), [_bare(operator) for _, operator in group])
        found.update(zip([job for job, _ in group], examples, strict=True))
    return [found[job] for job, _ in asked]


def _surveyed(operator: SymmetricOperator, key: Key) -> Examined:
    survey = Survey(MAX_OPERATIONS if is_concrete(operator, key) else TRACED_OPERATIONS)
    found = spectrum(operator, survey, key=key, throw=False)
    return found, rest_of(found)


def _surveyed_factor(factor: LinearMap, key: Key) -> Examined:
    return _surveyed(gram(factor), key)


def _alike(matching: BackMatching, made: Iterable[tuple[RowKey, SymmetricOperator]]) -> list[list[tuple[RowKey, Any]]]:
    """In groups of operators that are alike; those with convolutions, which loops slow down, of iterations only."""
    groups: list[tuple[LinearMap | None, list[tuple[RowKey, Any]]]] = []
    for job, operator in made:
        (block, _, part), factor = job, None
        if part == "gauss_newton" and block != matching.chain.names[-1]:
            bare = _bare(operator)
            factor = bare if _is_dear(operator) or not _convolves(bare) else None
        group = next((g for f, g in groups if f is not None and factor is not None and are_alike(f, factor)), None)
        groups.append((factor, [(job, operator)])) if group is None else group.append((job, operator))
    return [group for _, group in groups]


def _convolves(factor: LinearMap) -> bool:
    """Whether its product does."""
    shape = (factor.size,) if factor.batch is None else (factor.batch, factor.size)
    return contains_convolution(jax.make_jaxpr(factor.product)(jax.ShapeDtypeStruct(shape, factor.dtype)))


def _is_dear(operator: SymmetricOperator) -> bool:
    """Whether a `Survey` of a traced operator seeks its largest value alone."""
    if Dense(max_operations=TRACED_OPERATIONS).fits(operator):
        return False
    try:
        Structured().attempt(operator, jax.random.key(0))
    except Declined:
        return True
    return False


def _bare(operator: SymmetricOperator) -> LinearMap:
    """Its factor, without a label."""
    factor: Any = operator.factor
    return dataclasses.replace(factor, label="")


def named(found: Spectrum, rest: Density | None) -> str:
    """What the figures come from."""
    return found.method if rest is None else f"{found.method} + {QUADRATURE}(steps={rest.steps})"
