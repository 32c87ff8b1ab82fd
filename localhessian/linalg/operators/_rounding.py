"""How far numbers may be apart that ought to be equal."""

from typing import Any

import jax.numpy as jnp

EXACT = 10
"""Error of a value in units of eps times the largest, for the rounding of the products (heuristic: tests see 3)."""


def eps_of(dtype: Any) -> float:
    """The distance from 1 to the next number."""
    return float(jnp.finfo(dtype).eps)


def rounding(dtype: Any) -> float:
    """Relative to the largest *eigenvalue*: the error of one product with H."""
    return 10 * eps_of(dtype)


def skewed(eps: float) -> float:
    """Relative: between rounding and a difference that matters, of products that ought to be equal."""
    return float(100 * eps**0.75)
