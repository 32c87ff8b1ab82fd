"""What is multiplied: linear maps and symmetric operators, and the quick products of the CPU."""

from localhessian.linalg.operators._convolution import in_loop as in_loop
from localhessian.linalg.operators._convolution import repeat as repeat
from localhessian.linalg.operators._cpu import contains_convolution as contains_convolution
from localhessian.linalg.operators._matrix import matrix_map as matrix_map
from localhessian.linalg.operators._operators import HIGHEST as HIGHEST
from localhessian.linalg.operators._operators import LinearMap as LinearMap
from localhessian.linalg.operators._operators import Operator as Operator
from localhessian.linalg.operators._operators import SymmetricOperator as SymmetricOperator
from localhessian.linalg.operators._operators import call as call
from localhessian.linalg.operators._operators import check_operator as check_operator
from localhessian.linalg.operators._operators import gram as gram
from localhessian.linalg.operators._operators import rows_of as rows_of
from localhessian.linalg.operators._operators import unbatched as unbatched
from localhessian.linalg.operators._operators import unit_products as unit_products
from localhessian.linalg.operators._own import linear_map as linear_map
from localhessian.linalg.operators._own import symmetric_operator as symmetric_operator
from localhessian.linalg.operators._probe import contradiction as contradiction
from localhessian.linalg.operators._probe import is_repeatable as is_repeatable
from localhessian.linalg.operators._repeat import repeated as repeated
from localhessian.linalg.operators._rounding import EXACT as EXACT
from localhessian.linalg.operators._rounding import eps_of as eps_of
from localhessian.linalg.operators._rounding import rounding as rounding
from localhessian.linalg.operators._rounding import skewed as skewed
from localhessian.linalg.operators._stacked import weighted_sum as weighted_sum
from localhessian.linalg.operators._streamed import Streamed as Streamed
from localhessian.linalg.operators._streamed import triangle_of as triangle_of
