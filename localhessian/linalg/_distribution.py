"""The answer to "how are the eigenvalues distributed?", with its two kinds of error."""

import jax
import jax.numpy as jnp

from localhessian._tree import pytree, static
from localhessian._types import Array, Float, Int


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
        error = sigmas * self.probe_error + self.quadrature_error
        return self.value - error, self.value + error


@pytree
class Interval:
    """A number and the interval that it lies in; of a batched operator, arrays `(s,)`."""

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
    negative: QuadratureEstimate
    """`(*s,)`: share of the eigenvalues below -cutoff."""
    zero: QuadratureEstimate
    """`(*s,)`: share of the eigenvalues within the cutoff: the null space, by the rank rule."""
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
            `lower` is -infinity where the quantile may lie below the first edge, `upper` infinite above the last.

        Raises:
            ValueError: `q` is not between 0 and 1.
        """
        _check_quantile(q)
        target = jnp.full_like(self.largest, q)
        return self._crossing(target, target, target, sigmas)

    def quantile_condition_number(self, q: float, /, *, sigmas: float = 3.0) -> Interval:
        """lambda_max / lambda_q, lambda_q the q-quantile of the eigenvalues above the cutoff.

        Args:
            q: Between 0 and 1; 0.05 sets the smallest 5 % of the non-zero eigenvalues aside.
            sigmas: As in `quantile`.

        Returns:
            NaN where a share of the eigenvalues is certainly negative, or all are zero; `upper` is infinite where the
            quantile may lie below the first edge.

        Raises:
            ValueError: `q` is not between 0 and 1.
        """
        _check_quantile(q)
        none = self.zero.value + self.negative.value
        error = sigmas * (self.zero.probe_error + self.negative.probe_error)
        error = error + self.zero.quadrature_error + self.negative.quadrature_error
        low, high = jnp.clip(none - error, 0, 1), jnp.clip(none + error, 0, 1)
        low, none, high = (share + q * (1 - share) for share in (low, none, high))
        at = self._crossing(low, none, high, sigmas)
        refused = (self.negative.interval(sigmas)[0] > 0) | ~(self.largest > self.cutoff)
        known = jnp.where(refused, jnp.nan, 1.0)
        bottom = jnp.maximum(at.value, self.cutoff)
        top = self.largest + self.largest_error
        upper = jnp.where(at.lower > 0, top / jnp.where(at.lower > 0, at.lower, 1), jnp.inf)
        return Interval(self.largest / bottom * known, jnp.maximum(self.largest / at.upper, 1) * known, upper * known)

    def _crossing(self, low: Array, target: Array, high: Array, sigmas: float) -> Interval:
        """Where the cumulative distribution reaches the targets, up to rounding."""
        rounding = 10 * float(jnp.finfo(target.dtype).eps)
        low, target, high = (share - rounding for share in (low, target, high))
        below, above = self.cumulative.interval(sigmas)
        value = jax.lax.cummax(self.cumulative.value, self.cumulative.value.ndim - 1)
        after = jnp.argmax(value >= target[..., None], axis=-1)
        reached = value[..., -1] >= target
        after = jnp.where(reached, after, self.edges.shape[-1] - 1)
        before = jnp.maximum(after - 1, 0)
        left, right = (_at(self.edges, place) for place in (before, after))
        start, end = (_at(value, place) for place in (before, after))
        share = jnp.clip((target - start) / jnp.where(end > start, end - start, 1), 0, 1)
        share = jnp.where(end > start, share, 1)
        middle = left * (right / left) ** share if self.axis == "log" else left + (right - left) * share
        lower = jnp.max(jnp.where(above < low[..., None], self.edges, -jnp.inf), axis=-1)
        upper = jnp.min(jnp.where(below >= high[..., None], self.edges, jnp.inf), axis=-1)
        return Interval(middle, jnp.minimum(lower, middle), jnp.maximum(upper, middle))


def _at(array: Array, place: Array) -> Array:
    return jnp.take_along_axis(array, place[..., None], axis=-1)[..., 0]


def _check_quantile(q: float) -> None:
    if not 0 <= q <= 1:
        raise ValueError(f"`q` must lie between 0 and 1, got {q}.")
