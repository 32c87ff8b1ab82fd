"""Back-matching propagation with its solvers, and scale-amended SGD."""

from localhessian.training._propagate import BlockInfo as BlockInfo
from localhessian.training._propagate import PropagateInfo as PropagateInfo
from localhessian.training._propagate import initial_state as initial_state
from localhessian.training._propagate import propagate as propagate
from localhessian.training._scale import ScaleByLocalHessianState as ScaleByLocalHessianState
from localhessian.training._scale import scale_amended_sgd as scale_amended_sgd
from localhessian.training._scale import scale_by_local_hessian as scale_by_local_hessian
from localhessian.training._solvers import GaussNewton as GaussNewton
from localhessian.training._solvers import GradientStep as GradientStep
from localhessian.training._solvers import LeastSquares as LeastSquares
from localhessian.training._solvers import LevenbergMarquardt as LevenbergMarquardt
from localhessian.training._solvers import OptaxSteps as OptaxSteps
from localhessian.training._solvers import ScaledGradient as ScaledGradient
from localhessian.training._solvers import Solver as Solver
