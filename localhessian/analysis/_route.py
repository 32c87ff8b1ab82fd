"""By which way each local Hessian is looked at, what that takes, and what is left out where it is too much.

Where nobody names a method, everything is found where structure or a short dense decomposition give it, else the
largest eigenvalue and a quadrature: a spectrum without structure whose order is large does not come whole within any
number of products that a person waits for.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from localhessian._arguments import number, short
from localhessian._clock import timed_call
from localhessian._mesh import is_elsewhere
from localhessian._types import Key as PRNGKey
from localhessian.analysis._sources import Matching
from localhessian.analysis._survey import (
    ENDS,
    MAX_OPERATIONS,
    STREAMED,
    TOP,
    TRACED_OPERATIONS,
    Survey,
    rest_of,
    top_of,
)
from localhessian.analysis.rows import Key
from localhessian.curvature import local_hessian
from localhessian.linalg import (
    Cost,
    Declined,
    Dense,
    Density,
    Hutchinson,
    Krylov,
    Method,
    Operator,
    Spectrum,
    Structure,
    Structured,
    TraceEstimate,
    Unconfirmed,
    basis_bytes,
    extent,
    of_dense,
    of_iteration,
    of_structure,
    spectrum,
    trace,
)
from localhessian.network import BackMatching

WALKED = 64.0
"""Bytes for each number of the vectors of an operator that the search for structure takes (heuristic)."""
TOP_STEPS = 28.0
"""Steps of the largest eigenvalue to 0.3 % (heuristic)."""
FEW: dict[Krylov, Krylov] = {
    top: dataclasses.replace(top, max_matvecs=8, min_matvecs=0) for top in (TOP, ENDS, STREAMED)
}
"""With few products the same methods tell a lower bound of the largest eigenvalue."""
FEW_PROBES = 4
"""Random vectors of the trace beside them."""
AGAIN = 10.0
"""Seconds of a search that is not made again to see what it takes with everything compiled."""
QUICK = 0.1
"""Seconds below which rows keep their order."""
KEPT_BYTES = 2**28
"""Of all structures that are kept from planning to decomposing; others are found again."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What may be spent."""

    seconds: float = math.inf
    bytes: float = math.inf


@dataclasses.dataclass(frozen=True)
class Route:
    """The way to one local Hessian."""

    job: Key
    operator: Operator
    method: Method | None
    """None: none that fits."""
    reason: str
    cost: Cost
    is_structured: bool = False
    """Whether the operator splits, and the method finds how."""
    structure: Structure | None = None
    """As it was found, where it is not too large to be kept."""
    serves_others: bool = False
    """Whether a block that computes the same goes the same way: nothing splits, whatever the numbers are."""
    is_cut: bool = False
    """Whether limits keep the way from telling more."""
    searched: float = 0.0
    """Seconds that finding it took: blocks cost as much beside arithmetic. Of the prediction, not of the order."""

    @property
    def has_rest(self) -> bool:
        """Whether a quadrature tells what the method leaves, if it leaves anything."""
        return self.method is top_of(self.operator) or isinstance(self.method, Survey)

    @property
    def is_short(self) -> bool:
        """Whether a few products tell a lower bound of the largest eigenvalue, and the trace."""
        return self.method is FEW[top_of(self.operator)]

    @property
    def words(self) -> str:
        """The method, by its name."""
        if self.method is None:
            return "skipped"
        if self.is_short:
            return "few products"
        return "top + quadrature" if self.has_rest else type(self.method).__name__


def limits_of(max_seconds: float | None, max_bytes: float | None) -> Limits:
    """As a user gives them; of memory, by default what the machine has free.

    Raises:
        TypeError: One of them is no number.
        ValueError: It is not positive.
    """
    found = []
    for name, value in (("max_seconds", max_seconds), ("max_bytes", max_bytes)):
        given = math.inf if value is None else number(value)
        if given is None:
            raise TypeError(f"`{name}` must be a number or None, got {short(value)}.")
        if not given > 0:
            raise ValueError(f"`{name}` must be positive, got {short(value)}.")
        found.append(given)
    return Limits(found[0], free_bytes() if max_bytes is None else found[1])


def free_bytes() -> float:
    """Of memory that the machine has free; infinite where it does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/meminfo") as lines:
            known = {line.split(":")[0]: line.split()[1] for line in lines}
        return 1024.0 * float(known["MemAvailable"])
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE") / 2
    return math.inf


def route(
    matching: Matching,
    job: Key,
    samples: Sequence[int] | None,
    method: Method | None,
    most: float,
    *,
    timed: bool = True,
    keep: float = 0.0,
    known: dict[Hashable, Route] | None = None,
) -> Route:
    """The way to a local Hessian within `most` bytes.

    Args:
        matching: The network at its point, in numbers, or at a stream.
        job: (block, wrt, part).
        samples: Of an uncoupled H_z, which ones; None: the whole batch.
        method: Asked for; None leaves it to the order and the structure.
        most: Bytes.
        timed: Whether a product of what is not known otherwise is made, to see what it takes.
        keep: Bytes that a structure may take to be kept until it is decomposed.
        known: Routes of other blocks by what they compute; that of an equal block without structure serves again.

    Cost: the search for structure, `timed` twice; where an iteration is to run, four of its products and their
    compilation. Of a block that computes what another does, which has no structure: nothing.
    """
    block, wrt, part = job
    operator = local_hessian(matching, block, wrt, part, samples=samples)
    at = matching if isinstance(matching, BackMatching) else matching.first
    is_last = block == matching.chain.names[-1]
    kind = at.kinds[matching.chain.index(block)], is_last, wrt, part, operator.size, operator.batch
    known = {} if known is None else known
    if kind in known:
        return dataclasses.replace(known[kind], job=job, operator=operator, searched=0.0)
    found = _searched(job, operator, method, most, timed=timed, keep=keep)
    if found.serves_others:
        known[kind] = found
    return found


def _searched(job: Key, operator: Operator, method: Method | None, most: float, *, timed: bool, keep: float) -> Route:
    if is_elsewhere(operator):
        how = Survey(TRACED_OPERATIONS) if method is None else method
        return Route(job, operator, how, "one program over several processes", Cost(math.nan, math.nan))
    if method is not None:
        return Route(job, operator, method, "asked for", _cost(operator, method) if timed else Cost(math.nan, math.nan))
    structured = Structured(max_bytes=min(2.0**31, most))
    waits = not operator.in_programs
    (structure, why, serves), searched = timed_call(lambda: _structure(operator, structured, most), waits=waits)
    if structure is not None:
        if timed and searched < AGAIN:
            del structure  # or two would be in memory at once
            again = timed_call(lambda: structured.find(operator), waits=waits)
            structure, searched = again
        cost = of_structure(structure)
        cost = cost._replace(seconds=cost.seconds + structure.visits * searched)  # every batch takes as long again
        kept = structure if cost.bytes <= keep else None
        return Route(job, operator, structured, str(structure), cost, True, kept, searched=searched)
    dense = Dense(max_operations=MAX_OPERATIONS, max_bytes=int(min(2**31, most)))
    if dense.fits(operator) and of_dense(operator, timed=False).bytes <= most:
        cost = of_dense(operator, timed=timed)
        return Route(job, operator, dense, f"the matrix fits; {why}", cost, serves_others=serves)
    is_cut = most < _to_search(operator) or Dense(max_operations=MAX_OPERATIONS).fits(operator)
    dear = Route(job, operator, dense, why, Cost(math.inf, math.inf), serves_others=serves, is_cut=is_cut)
    return cheaper(dear, Limits(bytes=most))


def cheaper(route: Route, limits: Limits) -> Route:
    """In place of a whole spectrum the largest eigenvalue and a quadrature, or else a few products, whatever fits.

    What is skipped says what the least of it would take.
    """
    top = top_of(route.operator)
    ways = (top, TOP_STEPS), (FEW[top], float(FEW[top].max_matvecs + FEW_PROBES))
    least = [] if math.isinf(route.cost.seconds) or route.cost.bytes > limits.bytes else [route.cost]
    other = dataclasses.replace(route, is_structured=False, structure=None)
    step = next((route.cost.seconds / steps for method, steps in ways if route.method is method), math.nan)
    for method, steps in ways:
        needed = basis_bytes(route.operator, method)
        if needed > limits.bytes:
            least.append(Cost(math.nan, needed))
            continue
        step = of_iteration(route.operator, method, 1.0).seconds if math.isnan(step) else step
        cost = Cost(steps * step, needed)
        if cost.seconds <= limits.seconds:
            return dataclasses.replace(other, method=method, cost=cost)
        least.append(cost)
    known = [cost for cost in least if not math.isnan(cost.seconds)]
    cost = min(known) if known else min(least, key=lambda cost: cost.bytes)
    return dataclasses.replace(other, method=None, cost=cost)


def within(routes: Sequence[Route], limits: Limits) -> list[Route]:
    """Cheap ones first, quick ones in their order; from where the time is spent the cheaper way, or none."""
    found, left = [], limits.seconds
    for each in sorted(routes, key=_dear):
        fitting = each
        if each.method is not None and each.cost.seconds > left:
            fitting = dataclasses.replace(cheaper(each, Limits(left, limits.bytes)), is_cut=True)
        if fitting.method is not None and not math.isnan(fitting.cost.seconds):
            left -= fitting.cost.seconds
        found.append(fitting)
    return found


def _dear(found: Route) -> float:
    """Seconds; 0 of what is quick, infinite where nothing is predicted."""
    seconds = found.cost.seconds
    return math.inf if math.isnan(seconds) else seconds if seconds > QUICK else 0.0


class Taken(NamedTuple):
    """What was found by a route."""

    spectrum: Spectrum
    rest: Density | TraceEstimate | None
    """What a quadrature tells where the spectrum is not whole; of a few products the trace."""
    structure: Structure | None
    """That the spectrum comes from; None where there is none, or where a method was asked for."""


def taken(found: Route, matching: BackMatching, key: PRNGKey) -> Taken:
    """The spectrum of a local Hessian by its route, and what a quadrature tells beside it."""
    operator, method, structure = found.operator, found.method, found.structure
    key = jax.random.fold_in(key, matching.chain.index(found.job[0]))
    survey = Survey(MAX_OPERATIONS)
    if found.is_structured and isinstance(method, Structured):
        structure = structure or method.find(operator)
        method = dataclasses.replace(survey, structure=structure)
    spectrum_found = spectrum(operator, method, key=key, throw=False)
    rest: Density | TraceEstimate | None = None
    if found.has_rest:
        rest = rest_of(spectrum_found)
    elif found.is_short and (np.asarray(spectrum_found.lambda_max) > 0).all():
        rest = trace(operator, Hutchinson(FEW_PROBES), key=key)
    return Taken(spectrum_found, rest, structure)


def _structure(operator: Operator, structured: Structured, most: float) -> tuple[Structure | None, str, bool]:
    """What splits, found within `most` bytes; or why nothing does, and whether that is so for all numbers."""
    factor = operator.factor
    if factor is None and operator.in_programs:
        return None, "no structure: it has no factor R with H = R^T R", False
    if _to_search(operator) > most:
        return None, f"looking for structure would take {in_units(_to_search(operator))}", True
    try:
        return structured.find(operator), "", False
    except Declined as declined:
        return None, f"no structure: {declined}", not isinstance(declined, Unconfirmed)


def _to_search(operator: Operator) -> float:
    """Bytes that a search for structure takes; 0 where there is none."""
    factor = operator.factor
    if factor is None and operator.in_programs:
        return 0.0
    return WALKED * (operator.batch or 1) * (operator.size + (0 if factor is None else factor.out_size))


def _cost(operator: Operator, method: Method) -> Cost:
    """Of a method that was asked for, its whole budget; NaN where it is a user's own."""
    if isinstance(method, Krylov):
        return of_iteration(operator, method, method.max_matvecs)
    if isinstance(method, Dense):
        order, numbers = extent(operator)
        return of_dense(operator) if method.fits(operator) else Cost(math.nan, 4.0 * numbers + 16.0 * order**2)
    if isinstance(method, Structured):
        with contextlib.suppress(Declined):
            return of_structure(method.find(operator))
    return Cost(math.nan, math.nan)


def in_units(amount: float) -> str:
    """Bytes, for a person."""
    if not math.isfinite(amount):
        return "-"
    return f"{amount / 2**30:.2g} GiB" if amount >= 2**30 else f"{amount / 2**20:.2g} MiB"


def in_time(seconds: float) -> str:
    """Seconds, for a person."""
    if not math.isfinite(seconds):
        return "-"
    return f"{seconds / 60:.2g} min" if seconds >= 100 else f"{seconds:.2g} s"
