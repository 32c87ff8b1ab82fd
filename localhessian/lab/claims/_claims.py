"""All claims, in the order of the paper."""

from localhessian.lab.claims import _back_propagation, _conditioning
from localhessian.lab.claims._claim import Claim

CLAIMS: dict[str, Claim] = {claim.name: claim for claim in (_back_propagation.CLAIM, _conditioning.CLAIM)}
"""By name."""
