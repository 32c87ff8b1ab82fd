"""All claims, in the order of the paper."""

from localhessian.lab.claims import _back_propagation, _batch_norm, _orthogonal, _signals, _skips
from localhessian.lab.claims._claim import Claim

_MODULES = (_back_propagation, _orthogonal, _skips, _batch_norm, _signals)
CLAIMS: dict[str, Claim] = {module.CLAIM.name: module.CLAIM for module in _MODULES}
"""By name."""
