"""Local Hessians of back-propagation: how well conditioned is each part of a network?"""

from localhessian._status import Status as Status
from localhessian.curvature import IdentityCheck as IdentityCheck
from localhessian.curvature import IdentityError as IdentityError
from localhessian.curvature import check_identities as check_identities
from localhessian.curvature import local_hessian as local_hessian
from localhessian.linalg import ConditionNumber as ConditionNumber
from localhessian.linalg import Dense as Dense
from localhessian.linalg import GolubKahan as GolubKahan
from localhessian.linalg import Lanczos as Lanczos
from localhessian.linalg import LinearMap as LinearMap
from localhessian.linalg import Spectrum as Spectrum
from localhessian.linalg import SpectrumError as SpectrumError
from localhessian.linalg import SymmetricOperator as SymmetricOperator
from localhessian.linalg import condition_number as condition_number
from localhessian.linalg import linear_map as linear_map
from localhessian.linalg import quantile_condition_number as quantile_condition_number
from localhessian.linalg import spectrum as spectrum
from localhessian.linalg import symmetric_operator as symmetric_operator
from localhessian.network import BackMatching as BackMatching
from localhessian.network import Block as Block
from localhessian.network import Chain as Chain
from localhessian.network import back_match as back_match
from localhessian.network import back_matching_loss as back_matching_loss
from localhessian.study import Report as Report
from localhessian.study import Row as Row
from localhessian.study import analyze as analyze
