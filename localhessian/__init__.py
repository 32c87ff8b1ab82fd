"""Local Hessians of back-propagation: how well conditioned is each part of a network?"""

from localhessian._status import Status as Status
from localhessian.linalg import LinearMap as LinearMap
from localhessian.linalg import Spectrum as Spectrum
from localhessian.linalg import SymmetricOperator as SymmetricOperator
from localhessian.linalg import linear_map as linear_map
from localhessian.linalg import symmetric_operator as symmetric_operator
from localhessian.network import Block as Block
from localhessian.network import Chain as Chain
from localhessian.network import Cut as Cut
from localhessian.network import CutError as CutError
from localhessian.network import chain_from_function as chain_from_function
from localhessian.network import mark as mark
