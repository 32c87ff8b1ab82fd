"""Completeness of a spectrum from exact moments of its operator."""

import dataclasses
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect, short
from localhessian._status import quietly
from localhessian._tree import array_of, is_concrete
from localhessian._types import Array, Float
from localhessian.linalg.operators import eps_of, skewed
from localhessian.linalg.spectra._spectrum import Spectrum

ROUNDING = 10
"""Sums of eigenvalues are trusted to ROUNDING * eps of the sum of their sizes (heuristic)."""


@quietly()
def certify(
    spectrum: Spectrum,
    /,
    *,
    trace: float | Float[Array, "*s"] | None = None,
    frobenius: float | Float[Array, "*s"] | None = None,
) -> Spectrum:
    """Bound the eigenvalues that an incomplete spectrum lacks, by exact moments of the operator.

    What the values found leave of the trace (of a semi-definite operator) or of the Frobenius norm bounds every
    eigenvalue that is missing. Where the bound lies below the rank rule's cutoff, `lh.condition_number` treats the
    spectrum as complete: it has an upper bound then.

    Args:
        spectrum: From `lh.spectrum`, of the values that are not negligible.
        trace: tr(H), exact to rounding; used for a semi-definite H, known by its factor.
        frobenius: ||H||_F, exact to rounding.

    Returns:
        The same with `missing` lowered, if it is: rounding alone leaves some 10 eps tr(H), so that a cutoff `rtol` on
        singular values can be certified down to about sqrt(10 eps tr(H) / lambda_max).

    Raises:
        TypeError: A moment is no number for each operator.
        ValueError: Neither moment is given, or `trace` for an operator without a factor; a moment is not finite, or
            less than what the values found have already (under `jax.jit` it certifies nothing then).

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> R = lh.linear_map(lambda v: jnp.zeros(500).at[:2].set(v[:2] * jnp.array([1.0, 2.0])), None, 500, 500)
        >>> found = lh.spectrum(R, lh.GolubKahan(which="largest", k=2, basis_size=8))
        >>> bool(found.complete), bool(lh.certify(found, trace=5.0).missing < 1e-4)
        (False, True)
    """
    expect("spectrum", spectrum, Spectrum, "a spectrum from `lh.spectrum`")
    if trace is None and frobenius is None:
        raise ValueError("`certify` needs an exact moment: pass `trace`, `frobenius` or both.")
    if trace is not None and spectrum.singular_values is None:
        raise ValueError(
            "`trace` certifies a semi-definite operator, known by its factor, and this spectrum is of one without: "
            "pass `frobenius`."
        )
    xp = np if is_concrete(spectrum, trace, frobenius) else jnp
    values, counts, residuals, missing = (
        xp.asarray(part).astype(spectrum.missing.dtype)
        for part in (spectrum.eigenvalues, spectrum.multiplicities, spectrum.residual_norms, spectrum.missing)
    )
    values = xp.where(counts > 0, values, 0)
    # Of a matrix with Ritz vectors and the rest as two blocks, the residuals are the off-diagonal one.
    between = xp.sqrt(xp.sum(xp.where(counts > 0, residuals, 0) ** 2, axis=-1))
    rounding = ROUNDING * eps_of(spectrum.dtype)
    if trace is not None:
        total = _moment("trace", trace, xp.sum(counts * values, axis=-1), spectrum, xp)
        rest = total - xp.sum(counts * values, axis=-1)
        missing = xp.fmin(missing, xp.maximum(rest, 0) + rounding * total + between)
    if frobenius is not None:
        squares = _moment("frobenius", frobenius, xp.sqrt(xp.sum(counts * values**2, axis=-1)), spectrum, xp) ** 2
        rest = squares - xp.sum(counts * values**2, axis=-1)
        missing = xp.fmin(missing, xp.sqrt(xp.maximum(rest, 0) + rounding * squares) + between)
    return dataclasses.replace(spectrum, missing=array_of(missing, spectrum.missing.dtype))


def _moment(name: str, value: Any, least: Any, spectrum: Spectrum, xp: ModuleType) -> Any:
    """The moment given, NaN where it is none of an operator that has at least the values found."""
    try:
        given = None if isinstance(value, bool) else xp.asarray(value, least.dtype)
    except (TypeError, ValueError, OverflowError):
        given = None
    if given is None or given.shape not in ((), least.shape):
        raise TypeError(f"`{name}` must be a number for each operator, shape {least.shape}, got {short(value)}.")
    slack = skewed(eps_of(spectrum.dtype))
    fits = xp.isfinite(given) & (given >= 0) & ~(given < (1 - slack) * least)
    if is_concrete(fits) and not np.all(fits):
        raise ValueError(
            f"`{name}` must be finite and no less than what the values found make up, {least!s:.60}, got "
            f"{given!s:.60}: pass that of the same operator."
        )
    return xp.where(fits, given, xp.nan).astype(least.dtype)
