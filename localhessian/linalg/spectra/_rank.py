"""The rank rule: which singular values count as zero, and what rounding hides; one rule for every method and shape.

A singular value of the factor R counts as zero at or below `cutoff` times the largest. A method that multiplied by
H = R^T R instead of R sees eigenvalues through their rounding, which hides singular values up to the root of `noise`
times the largest: what lies between the two is neither zero nor known, so that no interval is closed over it.
Docs/theory.md, 4.
"""

from typing import Any

import jax.numpy as jnp

from localhessian.linalg.operators import eps_of

ROUNDINGS = 100
"""A singular value of this many eps of the largest is rounding."""
RANK_RULE = f"sigma > {ROUNDINGS} eps sigma_max"
"""What counts as non-zero, in words."""
NARROW = 16
"""Bits of a dtype whose 100 eps would count nearly everything as zero."""
GAP = 10
"""Singular values around the cutoff that are less than this factor apart leave the rank uncertain."""


def cutoff(dtype: Any, rtol: float | None = None) -> float:
    """Relative to the largest singular value: `rtol`, or 100 eps of the arithmetic (of 16 bits: 4 eps)."""
    if rtol is not None:
        return rtol
    return (4 if jnp.finfo(dtype).bits <= NARROW else ROUNDINGS) * eps_of(dtype)


def doubtful(dtype: Any) -> float:
    """Relative to the largest: non-zero singular values at or below it leave the rank uncertain (16 bits: 100 eps)."""
    return ROUNDINGS * eps_of(dtype) if jnp.finfo(dtype).bits <= NARROW else 0.0


def noise(dtype: Any) -> float:
    """Relative to the largest *eigenvalue*: what all the rounding of a method that multiplies by H leaves of each."""
    return cutoff(dtype)


def counted(dtype: Any, has_factor: bool, rtol: float | None = None) -> float:
    """Relative to the largest singular value: above it, and above what is hidden without a factor, a value counts."""
    hidden = 0.0 if has_factor else noise(dtype) ** 0.5
    return max(cutoff(dtype, rtol), hidden)
