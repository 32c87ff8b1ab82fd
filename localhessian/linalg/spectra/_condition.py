"""Condition numbers with their interval, by one rank rule for every method and shape."""

from types import ModuleType
from typing import Any

import numpy as np

from localhessian._arguments import expect, expect_share
from localhessian._status import REFUSED, Status, quietly
from localhessian._tree import on_the_host, pytree
from localhessian._types import Array, Float, Int
from localhessian.linalg.operators import rounding
from localhessian.linalg.spectra._rank import GAP, counted, cutoff, doubtful, noise
from localhessian.linalg.spectra._spectrum import Spectrum


@pytree
class ConditionNumber:
    """Condition numbers of a local Hessian; every field has the leading axis of a batched spectrum.

    On the host arrays of NumPy, the floating-point ones in float64 (nothing is compiled, no ratio overflows); under
    transformations arrays of JAX in the spectrum's own dtype.
    """

    value: Float[Array | np.ndarray, "*s"]
    """kappa_plus = lambda_max / smallest non-zero eigenvalue; NaN when unknown, refused (indefinite) or H = 0."""
    lower: Float[Array | np.ndarray, "*s"]
    """A lower bound of kappa_plus, from certified non-zero values only."""
    upper: Float[Array | np.ndarray, "*s"]
    """An upper bound of kappa_plus; infinite unless the spectrum is complete, or certified down to the cutoff."""
    whole: Float[Array | np.ndarray, "*s"]
    """kappa over the whole space: infinite when singular; indefinite: max|lambda| / min|lambda|; NaN if unknown."""
    rank: Int[Array | np.ndarray, "*s"]
    """How many eigenvalues are non-zero, by multiplicity; of an incomplete spectrum, how many are certified."""
    lambda_min_nonzero: Float[Array | np.ndarray, "*s"]
    """The smallest non-zero eigenvalue; of an incomplete spectrum, the smallest that is certified; NaN if none is."""
    cutoff: Float[Array | np.ndarray, "*s"]
    """Singular values of the factor at or below it count as zero (without one: sqrt(lambda), and what is hidden)."""
    gap: Float[Array | np.ndarray, "*s"]
    """Smallest singular value above the cutoff over the largest below it; infinite if none is below, NaN if unknown."""
    failure_probability: Float[Array | np.ndarray, "*s"]
    """That lambda_max is more than a tenth above the value used, over random starts; 1 where nothing is known."""
    status: Int[Array | np.ndarray, "*s"]
    """A `localhessian.Status` code."""


@quietly()
def condition_number(spectrum: Spectrum, /, *, rtol: float | None = None) -> ConditionNumber:
    r"""Condition number of a positive semi-definite matrix, with its interval.

    kappa_plus = lambda_max / min{lambda_i : sqrt(lambda_i) > rtol sigma_max}

    Args:
        spectrum: From `lh.spectrum`.
        rtol: Relative cutoff for "zero" on singular values of the factor, whatever the method. Default `100 * eps` of
            the arithmetic that made the spectrum (`4 * eps` of 16-bit arithmetic). A method that multiplied by H sees
            nothing below `sqrt(100 * eps)`: what lies between that and the cutoff is not counted, and the rank is
            uncertain.

    Returns:
        `status` is INDEFINITE when an eigenvalue lies below the negative cutoff (then `value` is NaN), ZERO when all
        are zero, NON_FINITE when one is not finite, RANK_UNCERTAIN when `gap < 10`, when a value's error reaches the
        cutoff or rounding may hide a value above it (then `upper` is infinite), otherwise that of the spectrum. From an
        incomplete spectrum `upper` is infinite, and `value` and `lower` use those values only whose recomputed
        residual certifies them as non-zero (`lh.certify` can make up for what is missing). Works under `jax.jit` and
        `jax.vmap`.

    Raises:
        ValueError: `rtol` is not between 0 and 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> diagonal = jnp.array([0.0, 1.0, 50.0])
        >>> kappa = lh.condition_number(lh.spectrum(lh.symmetric_operator(lambda v: diagonal * v, 3)))
        >>> print(round(float(kappa.value)), int(kappa.rank), float(kappa.whole), lh.Status(int(kappa.status)).name)
        50 2 inf RANK_UNCERTAIN

    Source: docs/theory.md, 4; the interval by |lambda - theta| <= ||r||.
    """
    expect("spectrum", spectrum, Spectrum, "a spectrum from `lh.spectrum`")
    if rtol is not None:
        expect_share("rtol", rtol)
    xp, spectrum = on_the_host(spectrum)
    seen, finite = _seen(xp, spectrum)
    sigma, rho = _singular_scale(xp, spectrum, seen)
    largest = xp.max(sigma, axis=-1)
    # Where the largest values were not sought, what the products showed of them.
    shown = _shown(xp, spectrum)
    top = xp.maximum(largest, shown)
    zero_below, counted_above = (relative * top for relative in _cutoffs(spectrum, rtol))
    certified = seen & (sigma - rho > counted_above[..., None])
    complete = spectrum.complete | (xp.isfinite(spectrum.missing) & (spectrum.missing <= zero_below**2))
    above = xp.where(complete[..., None], seen & (sigma > counted_above[..., None]), certified)

    smallest = _smallest(xp, sigma, above)
    rank = xp.sum(xp.where(above, spectrum.multiplicities, 0), axis=-1)
    # Of an incomplete spectrum, a small value that is not certified, or not sought, leaves kappa_plus unknown.
    both_ends = xp.all(certified | ~seen, axis=-1) & (spectrum.ends == "both")
    known = (rank > 0) & (complete | both_ends)
    value = xp.where(known, _square_ratio(xp, largest, smallest), xp.nan)
    surely = xp.maximum(largest - _at_largest(xp, sigma, rho), shown)
    lower = _square_ratio(xp, surely, _smallest(xp, sigma + rho, certified))
    lower = xp.where(xp.any(certified, axis=-1), xp.fmin(xp.maximum(lower, 1), value), xp.nan)
    clear = xp.where(above, certified, ~seen | (sigma + rho <= zero_below[..., None]))
    sure = complete & xp.all(clear, axis=-1)
    upper = _square_ratio(xp, largest + _at_largest(xp, sigma, rho), _smallest(xp, sigma - rho, above))
    upper = xp.where(sure & (rank > 0), xp.maximum(upper, value), xp.inf)

    below = xp.max(xp.where(seen & ~above, sigma, 0), axis=-1)
    gap = xp.where((rank > 0) & (below > 0), smallest / xp.where(below > 0, below, 1), xp.inf)
    gap = xp.where(complete, gap, xp.nan)
    indefinite = _indefinite(xp, spectrum, seen)
    refused = xp.where(indefinite | ~finite, xp.nan, 1.0)
    whole = _whole(xp, spectrum, seen, value, rank, indefinite, complete) * xp.where(finite, 1.0, xp.nan)
    narrow = smallest <= doubtful(spectrum.dtype) * top
    uncertain = complete & (rank > 0) & ((gap < GAP) | ~sure | narrow)
    zero = finite & (xp.max(xp.abs(xp.where(seen, sigma, 0)), axis=-1) == 0) & xp.any(seen, axis=-1) & (top == 0)
    status = _status(xp, spectrum, uncertain, (zero, Status.ZERO), (~finite, Status.NON_FINITE), indefinite)
    least = xp.where((rank > 0) & ~indefinite & finite, xp.where(rank > 0, smallest, 1) ** 2, xp.nan)
    bounds = (value * refused, lower * refused, upper * refused)
    failure = xp.asarray(spectrum.failure_probability())
    return ConditionNumber(*bounds, whole, rank, least, counted_above, gap, failure, status)


@quietly()
def quantile_condition_number(spectrum: Spectrum, q: float, /, *, rtol: float | None = None) -> Float[Any, "*s"]:
    """lambda_max / lambda_q, lambda_q the q-quantile of the non-zero eigenvalues by multiplicity.

    Over the non-zero part, by the rank rule: over the whole space it would be infinite for most blocks. A few
    near-null directions, which decide kappa_plus, leave it alone: the robust figure to compare networks by.

    Args:
        spectrum: From `lh.spectrum`.
        q: Between 0 (kappa_plus) and 1 (gives 1).
        rtol: As in `lh.condition_number`.

    Returns:
        NaN for an incomplete spectrum (a few Ritz values have no quantiles), or an indefinite one.

    Raises:
        ValueError: `q` or `rtol` is not between 0 and 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> diagonal = jnp.array([1e-3, 1.0, 2.0, 4.0])
        >>> spectrum = lh.spectrum(lh.symmetric_operator(lambda v: diagonal * v, 4))
        >>> print(round(float(lh.quantile_condition_number(spectrum, 0.5)), 3))
        4.0
    """
    expect("spectrum", spectrum, Spectrum, "a spectrum from `lh.spectrum`")
    expect_share("q", q, closed=True)
    if rtol is not None:
        expect_share("rtol", rtol)
    xp, spectrum = on_the_host(spectrum)
    seen, finite = _seen(xp, spectrum)
    sigma, _ = _singular_scale(xp, spectrum, seen)
    largest = xp.max(sigma, axis=-1)
    above = seen & (sigma > (_cutoffs(spectrum, rtol)[1] * largest)[..., None])
    counts = xp.cumsum(xp.where(above, spectrum.multiplicities, 0), axis=-1).astype(sigma.dtype)
    reached = above & (counts >= xp.maximum(q * counts[..., -1:], 1))
    at_q = _smallest(xp, sigma, reached)
    known = spectrum.complete & finite & ~_indefinite(xp, spectrum, seen)
    return xp.where(known & xp.any(above, axis=-1), _square_ratio(xp, largest, at_q), xp.nan)


def _cutoffs(spectrum: Spectrum, rtol: float | None) -> tuple[float, float]:
    """Relative to the largest singular value: at or below which one is zero, and above which one is counted."""
    has_factor = spectrum.singular_values is not None
    return cutoff(spectrum.dtype, rtol), counted(spectrum.dtype, has_factor, rtol)


def _seen(xp: ModuleType, spectrum: Spectrum) -> Any:
    """Which slots hold a value, and which spectra hold finite ones only."""
    there = spectrum.multiplicities > 0
    values = spectrum.eigenvalues if spectrum.singular_values is None else spectrum.singular_values
    fine = xp.isfinite(values)
    return there & fine, xp.all(fine | ~there, axis=-1)


def _singular_scale(xp: ModuleType, spectrum: Spectrum, seen: Any) -> Any:
    """Singular values of the factor (without one, sqrt|lambda|) and their error bounds; 0 in empty slots."""
    if spectrum.singular_values is not None:
        return xp.where(seen, spectrum.singular_values, 0), xp.where(seen, spectrum.singular_residual_norms, 0)
    size = xp.where(seen, xp.abs(spectrum.eigenvalues), 0)
    # A product with H is rounded at its own size, whatever the residual of a vector that was recomputed by it.
    least = rounding(spectrum.dtype) * xp.max(size, axis=-1, keepdims=True)
    residual = xp.maximum(xp.where(seen, spectrum.residual_norms, 0), least)
    # |sqrt(a) - sqrt(b)| <= |a - b| / sqrt(max(a, b)), and <= sqrt|a - b|
    sigma = _root(xp, size)
    rho = sigma - _root(xp, size - residual)
    return sigma, xp.maximum(rho, _root(xp, size + residual) - sigma)


def _root(xp: ModuleType, x: Any) -> Any:
    """The square root, of what is not positive 0 with derivative 0: that of a root at 0 is NaN times nothing."""
    return xp.where(x > 0, xp.sqrt(xp.where(x > 0, x, 1)), 0)


def _shown(xp: ModuleType, spectrum: Spectrum) -> Any:
    """The largest singular value is at least this."""
    if spectrum.norm is None:
        return 0.0
    return spectrum.norm if spectrum.singular_values is not None else xp.sqrt(spectrum.norm)


def _smallest(xp: ModuleType, sigma: Any, mask: Any) -> Any:
    return xp.min(xp.where(mask, sigma, xp.inf), axis=-1)


def _at_largest(xp: ModuleType, sigma: Any, rho: Any) -> Any:
    return xp.max(xp.where(sigma == xp.max(sigma, axis=-1, keepdims=True), rho, 0), axis=-1)


def _square_ratio(xp: ModuleType, top: Any, bottom: Any) -> Any:
    return xp.where(bottom > 0, (top / xp.where(bottom > 0, bottom, 1)) ** 2, xp.nan)


def _indefinite(xp: ModuleType, spectrum: Spectrum, seen: Any) -> Any:
    size = xp.where(seen, spectrum.eigenvalues, 0)
    if spectrum.singular_values is not None:
        return xp.zeros(size.shape[:-1], bool)
    # Whatever `rtol`: it neither makes the rounding of products with H significant, nor excuses a negative eigenvalue.
    norm = xp.max(xp.abs(size), axis=-1) if spectrum.norm is None else spectrum.norm
    return xp.min(size, axis=-1) < -noise(spectrum.dtype) * norm


def _whole(xp: ModuleType, spectrum: Spectrum, seen: Any, value: Any, rank: Any, indefinite: Any, complete: Any) -> Any:
    size = xp.abs(spectrum.eigenvalues)
    low, high = _smallest(xp, size, seen), xp.max(xp.where(seen, size, 0), axis=-1)
    regular = xp.isfinite(high) & (low > 0) & xp.any(seen, axis=-1)
    of_indefinite = xp.where(regular, high / xp.where(regular, low, 1), xp.inf)
    of_definite = xp.where(rank == xp.asarray(spectrum.size, rank.dtype), value, xp.inf)
    known = xp.where(indefinite, of_indefinite, of_definite)
    return xp.where(complete, known, xp.nan)


def _status(xp: ModuleType, spectrum: Spectrum, uncertain: Any, zero: Any, broken: Any, indefinite: Any) -> Any:
    status = xp.where(uncertain, int(Status.RANK_UNCERTAIN), int(Status.CONVERGED))
    status = xp.where(spectrum.status == 0, status, spectrum.status)
    # An iteration on a zero operator ends at once, however it says so; a refused one has no values.
    refused = xp.isin(spectrum.status, xp.asarray([int(code) for code in REFUSED], dtype=spectrum.status.dtype))
    for there, code in (zero, broken):
        status = xp.where(there & ~refused, int(code), status)
    return xp.where(indefinite, int(Status.INDEFINITE), status)
