"""Completeness of a spectrum from exact moments of its operator."""

import dataclasses

import jax.numpy as jnp

from localhessian._arguments import expect
from localhessian._types import Array, Float
from localhessian.linalg._spectrum import Spectrum

ROUNDING = 10
"""Sums of eigenvalues are trusted to ROUNDING * eps of the sum of their sizes (heuristic)."""


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
        ValueError: Neither moment is given, or `trace` for an operator without a factor.

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
    seen = spectrum.multiplicities > 0
    counts = spectrum.multiplicities.astype(spectrum.eigenvalues.dtype)
    values = jnp.where(seen, spectrum.eigenvalues, 0)
    # Of a matrix with Ritz vectors and the rest as two blocks, the residuals are the off-diagonal one.
    between = jnp.sqrt(jnp.sum(jnp.where(seen, spectrum.residual_norms, 0) ** 2, axis=-1))
    rounding = ROUNDING * float(jnp.finfo(spectrum.dtype).eps)
    missing = spectrum.missing
    if trace is not None:
        total = jnp.asarray(trace, values.dtype)
        rest = total - jnp.sum(counts * values, axis=-1)
        missing = jnp.minimum(missing, jnp.maximum(rest, 0) + rounding * total + between)
    if frobenius is not None:
        squares = jnp.asarray(frobenius, values.dtype) ** 2
        rest = squares - jnp.sum(counts * values**2, axis=-1)
        missing = jnp.minimum(missing, jnp.sqrt(jnp.maximum(rest, 0) + rounding * squares) + between)
    return dataclasses.replace(spectrum, missing=missing)
