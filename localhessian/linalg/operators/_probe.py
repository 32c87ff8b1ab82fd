"""Is a product of the user's what it claims to be? Five products tell before long work begins."""

from typing import Any

import numpy as np

from localhessian._status import Status
from localhessian._tree import is_concrete, to_device
from localhessian.linalg.operators._operators import Operator
from localhessian.linalg.operators._rounding import eps_of, rounding, skewed


def contradiction(operator: Operator) -> Status | None:
    """What is wrong with a symmetric operator of the user's: not deterministic, not linear, not symmetric, or None.

    Products that are not finite, and those that only a transformation knows, are left to the methods.
    """
    if operator.symmetric is not operator or not operator.on_trust or not is_concrete(operator):
        return None
    u, v = np.random.default_rng(0).standard_normal((2, operator.size))
    products = [operator.mv(to_device(w, operator.dtype)) for w in (u, u, v, u - 2 * v, 0 * u)]
    if not is_concrete(products):
        return None
    first, again, second, both, none = (np.asarray(product, np.float64) for product in products)
    if not all(np.isfinite(part).all() for part in (first, again, second, both, none)):
        return None
    norms = np.linalg.norm(first) / np.linalg.norm(u) + np.linalg.norm(second) / np.linalg.norm(v)
    far = skewed(eps_of(operator.dtype)) * norms
    # A product with zero has no rounding, so that it shows a small constant too.
    if np.linalg.norm(none) > rounding(operator.dtype) * norms and not np.linalg.norm(first - again) > far:
        return Status.NOT_LINEAR
    wrong = (
        (Status.NOT_DETERMINISTIC, np.linalg.norm(first - again), np.linalg.norm(u)),
        (Status.NOT_LINEAR, np.linalg.norm(both - first + 2 * second), np.linalg.norm(u) + 2 * np.linalg.norm(v)),
        (Status.NOT_SYMMETRIC, abs(u @ second - v @ first), np.linalg.norm(u) * np.linalg.norm(v)),
    )
    return next((status for status, apart, size in wrong if apart > far * size), None)


def is_repeatable(operator: Operator) -> Any:
    """(*s,) whether the same product, of a random vector, gives the same answer twice: noise would be called skew."""
    lead = () if operator.batch is None else (operator.batch,)
    v = to_device(np.random.default_rng(0).standard_normal((*lead, operator.size)), operator.dtype)
    one, again = (np.asarray(operator.mv(v), np.float64) for _ in range(2))
    apart, norm = (np.linalg.norm(part, axis=-1) for part in (one - again, one))
    return ~(apart > skewed(eps_of(operator.dtype)) * norm)
