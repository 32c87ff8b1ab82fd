"""All claims, in the order of the paper."""

from localhessian.lab.claims import (
    _back_propagation,
    _batch_norm,
    _conditioning,
    _orthogonal,
    _scale_amended,
    _signals,
    _skips,
    _solvers,
)
from localhessian.lab.claims._claim import Claim

_MODULES = (
    _back_propagation,
    _orthogonal,
    _skips,
    _batch_norm,
    _signals,
    _conditioning,
    _scale_amended,
    _solvers,
)
CLAIMS: dict[str, Claim] = {module.CLAIM.name: module.CLAIM for module in _MODULES}
"""By name."""
