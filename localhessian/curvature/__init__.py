"""Where networks and spectra meet: local Hessians as operators with their factor."""

from localhessian.curvature._exact_scalars import LocalScalars as LocalScalars
from localhessian.curvature._exact_scalars import local_scalars as local_scalars
from localhessian.curvature._identities import IdentityCheck as IdentityCheck
from localhessian.curvature._identities import IdentityError as IdentityError
from localhessian.curvature._identities import check_identities as check_identities
from localhessian.curvature._local_hessian import local_hessian as local_hessian
from localhessian.curvature._recipe import Part as Part
from localhessian.curvature._recognize import loss_hessian as loss_hessian
from localhessian.curvature._scalars import SCALARS as SCALARS
from localhessian.curvature._scalars import check_scalar as check_scalar
from localhessian.curvature._scalars import estimated_scalars as estimated_scalars
from localhessian.curvature._scalars import random_words as random_words
from localhessian.curvature._streamed import coupling as coupling
