"""Where networks and spectra meet: local Hessians as operators with their factor."""

from localhessian.curvature._identities import IdentityCheck as IdentityCheck
from localhessian.curvature._identities import IdentityError as IdentityError
from localhessian.curvature._identities import check_identities as check_identities
from localhessian.curvature._local_hessian import local_hessian as local_hessian
