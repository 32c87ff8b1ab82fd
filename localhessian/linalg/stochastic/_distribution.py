"""The answer to "how are the eigenvalues distributed?", with its two kinds of error."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np

from localhessian._arguments import expect_number, expect_share
from localhessian._tree import on_the_host, pytree, static
from localhessian._types import Array, Float, Int
from localhessian.linalg.operators import eps_of
from localhessian.linalg.spectra import missed


@pytree
class QuadratureEstimate:
    """Numbers with two kinds of error; all fields have the same shape."""

    value: Array
    """The mean over the probes of the middle of the bounds."""
    probe_error: Array
    """Standard error over the probes: how much another set of start vectors would change the value."""
    quadrature_error: Array
    """Half the distance of the bounds: no spectrum with the computed moments is farther off (not a standard error)."""

    def interval(self, sigmas: float = 3.0) -> tuple[Array, Array]:
        """Value -+ (`sigmas` times the probe error, plus the quadrature error)."""
        expect_number("sigmas", sigmas)
        error = sigmas * self.probe_error + self.quadrature_error
        return self.value - error, self.value + error


@pytree
class Interval:
    """A number and the interval that it lies in; of a batched operator, arrays `(s,)`. On the host float64 of NumPy."""

    value: Float[Array, "*s"]
    """The estimate."""
    lower: Float[Array, "*s"]
    """Lower end."""
    upper: Float[Array, "*s"]
    """Upper end; infinite where the data tell nothing."""


@pytree
class Density:
    """How the eigenvalues of an operator are distributed; a batched operator gives every array a leading axis `s`.

    Shares count eigenvalues by multiplicity and are relative to `size`.
    """

    edges: Float[Array, "*s e"]
    """Of the bins, ascending, as eigenvalues (on the log axis too)."""
    density: QuadratureEstimate
    """Of each bin, `(*s, e - 1)`: share of the eigenvalues per unit lambda, or per unit log10(lambda)."""
    cumulative: QuadratureEstimate
    """At each edge, `(*s, e)`: share of all eigenvalues at or below it, zero and negative ones included."""
    tail: Float[Array, "*s t"]
    """Some eigenvalues between the cutoff and the first edge of a log axis, ascending; none on a linear axis."""
    tail_cumulative: QuadratureEstimate
    """At each of them, as `cumulative`."""
    negative: QuadratureEstimate
    """`(*s,)`: share of the eigenvalues below -cutoff."""
    zero: QuadratureEstimate
    """`(*s,)`: share of the eigenvalues within the cutoff: the null space, by the rank rule."""
    mean: QuadratureEstimate
    """`(*s,)`: the mean eigenvalue, trace / size."""
    mean_square: QuadratureEstimate
    """`(*s,)`: of their squares, ||H||_F^2 / size."""
    nonzero: Float[Array, "*s"]
    """The smallest non-zero eigenvalue is at most this, by the Ritz values whose whole error interval lies above the
    cutoff; infinite where there is none."""
    cutoff: Float[Array, "*s"]
    """Eigenvalues of at most this size count as zero."""
    largest: Float[Array, "*s"]
    """The largest Ritz value: a lower bound of lambda_max up to rounding."""
    largest_error: Float[Array, "*s"]
    """Some eigenvalue lies that near to `largest`."""
    status: Int[Array, "*s"]
    """A `localhessian.Status` code: CONVERGED, or why the numbers mean nothing (they are NaN then)."""
    matvecs: Int[Array, ""]
    """Products with H, or pairs of products with R and R^T (batched products count once for each probe)."""
    axis: str = static()
    """`linear` or `log`."""
    size: int = static()
    """The order of the operator."""
    probes: int = static()
    """How many start vectors; 0 of an exact density."""
    steps: int = static()
    """Of each recurrence."""
    exact: bool = static()
    """Whether it was counted from a complete spectrum."""

    def quantile(self, q: float, /, *, sigmas: float = 3.0) -> Interval:
        """The value that a share q of all eigenvalues lies at or below, zero and negative ones included.

        Args:
            q: Between 0 and 1.
            sigmas: How many probe errors the interval takes in, beside the quadrature error and the width of a bin.

        Returns:
            `lower` is -infinity where the quantile may lie below the first edge and the tail, `upper` infinite above
            the last.

        Raises:
            ValueError: `q` is not between 0 and 1.
        """
        expect_share("q", q, closed=True)
        expect_number("sigmas", sigmas)
        xp, known = on_the_host(self)
        target = xp.full_like(known.largest, q)
        return _crossing(xp, known, (target, target, target), sigmas, _rounding(self))

    def quantile_condition_number(self, q: float, /, *, sigmas: float = 3.0) -> Interval:
        """lambda_max / lambda_q, lambda_q the q-quantile of the eigenvalues above the cutoff.

        Args:
            q: Between 0 and 1; 0.05 sets the smallest 5 % of the non-zero eigenvalues aside.
            sigmas: As in `quantile`.

        Returns:
            NaN where a share of the eigenvalues is certainly negative, or all are zero; `upper` is infinite where the
            quantile may lie below the first edge and the tail.

        Raises:
            ValueError: `q` is not between 0 and 1.
        """
        expect_share("q", q, closed=True)
        expect_number("sigmas", sigmas)
        xp, known = on_the_host(self)
        none = known.zero.value + known.negative.value
        error = sigmas * (known.zero.probe_error + known.negative.probe_error)
        error = error + known.zero.quadrature_error + known.negative.quadrature_error
        low, high = xp.clip(none - error, 0, 1), xp.clip(none + error, 0, 1)
        low, none, high = (share + q * (1 - share) for share in (low, none, high))
        at = _crossing(xp, known, (low, none, high), sigmas, _rounding(self))
        refused = (known.negative.interval(sigmas)[0] > 0) | ~(known.largest > known.cutoff)
        figures = xp.where(refused, xp.nan, xp.ones_like(known.largest))
        largest, bottom = known.largest, xp.maximum(at.value, known.cutoff)
        top = largest + known.largest_error
        upper = xp.where(at.lower > 0, top / xp.where(at.lower > 0, at.lower, 1), xp.inf)
        return Interval(largest / bottom * figures, xp.maximum(largest / at.upper, 1) * figures, upper * figures)

    def failure_probability(self, relative_error: float = 0.1) -> float:
        """How probable it is, over the starts, that `largest` misses lambda_max by more than this.

        All of them must. 0 of an exact density. As `Spectrum.failure_probability`.
        """
        expect_share("relative_error", relative_error, closed=True)
        return 0.0 if self.exact else float(missed(self.size, float(self.steps), relative_error, np)) ** self.probes


def _rounding(density: Density) -> float:
    return 10 * eps_of(density.edges.dtype)


def _crossing(xp: ModuleType, known: Density, targets: tuple[Any, ...], sigmas: float, rounding: float) -> Interval:
    """Where the cumulative distribution reaches the targets (low, middle, high), up to rounding."""
    low, target, high = (share - rounding for share in targets)
    below, above = known.cumulative.interval(sigmas)
    value: Any = known.cumulative.value
    value = np.maximum.accumulate(value, axis=-1) if xp is np else jax.lax.cummax(value, value.ndim - 1)
    after = xp.argmax(value >= target[..., None], axis=-1)
    reached = value[..., -1] >= target
    after = xp.where(reached, after, known.edges.shape[-1] - 1)
    before = xp.maximum(after - 1, 0)
    at: Callable[..., Any] = lambda array, place: xp.take_along_axis(array, place[..., None], axis=-1)[..., 0]
    left, right = (at(known.edges, place) for place in (before, after))
    start, end = (at(value, place) for place in (before, after))
    share = xp.clip((target - start) / xp.where(end > start, end - start, 1), 0, 1)
    share = xp.where(end > start, share, 1)
    middle = left * (right / left) ** share if known.axis == "log" else left + (right - left) * share
    points = xp.concatenate([known.tail, known.edges], axis=-1)
    above = xp.concatenate([known.tail_cumulative.interval(sigmas)[1], above], axis=-1)
    lower = xp.max(xp.where(above < low[..., None], points, -xp.inf), axis=-1)
    upper = xp.min(xp.where(below >= high[..., None], known.edges, xp.inf), axis=-1)
    return Interval(middle, xp.minimum(lower, middle), xp.maximum(upper, middle))
