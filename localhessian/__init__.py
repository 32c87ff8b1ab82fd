"""Local Hessians of back-propagation: how well conditioned is each part of a network?"""

from localhessian._status import Status as Status
from localhessian.curvature import IdentityCheck as IdentityCheck
from localhessian.curvature import IdentityError as IdentityError
from localhessian.curvature import check_identities as check_identities
from localhessian.curvature import local_hessian as local_hessian
from localhessian.linalg import LinearMap as LinearMap
from localhessian.linalg import Spectrum as Spectrum
from localhessian.linalg import SymmetricOperator as SymmetricOperator
from localhessian.linalg import linear_map as linear_map
from localhessian.linalg import symmetric_operator as symmetric_operator
from localhessian.network import BackMatching as BackMatching
from localhessian.network import Block as Block
from localhessian.network import Chain as Chain
from localhessian.network import Cut as Cut
from localhessian.network import CutError as CutError
from localhessian.network import chain_from_function as chain_from_function
from localhessian.network import mark as mark
from localhessian.network import back_match as back_match
from localhessian.network import back_matching_loss as back_matching_loss
from localhessian.network import chain_from_equinox as chain_from_equinox
from localhessian.network import chain_from_linen as chain_from_linen
from localhessian.network import chain_from_nnx as chain_from_nnx
