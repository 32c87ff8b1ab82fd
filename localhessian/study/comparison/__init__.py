"""Fair comparisons of training algorithms: equal budgets, several seeds, intervals."""

from localhessian.study.comparison._algorithm import Algorithm as Algorithm
from localhessian.study.comparison._algorithm import Batch as Batch
from localhessian.study.comparison._algorithm import Descent as Descent
from localhessian.study.comparison._algorithm import Stepped as Stepped
from localhessian.study.comparison._algorithms import DEFAULT_ALGORITHMS as DEFAULT_ALGORITHMS
from localhessian.study.comparison._algorithms import algorithm as algorithm
from localhessian.study.comparison._checkpoint import Checkpoint as Checkpoint
from localhessian.study.comparison._compare import compare as compare
from localhessian.study.comparison._comparison import Comparison as Comparison
from localhessian.study.comparison._network import Network as Network
from localhessian.study.comparison._network import nnx_network as nnx_network
from localhessian.study.comparison._networks import network as network
from localhessian.study.comparison._outcome import Outcome as Outcome
from localhessian.study.comparison._outcome import Tuned as Tuned
from localhessian.study.comparison._plan import Plan as Plan
from localhessian.study.comparison._propagation import Propagation as Propagation
from localhessian.study.comparison._run import Run as Run
from localhessian.study.comparison._statistics import Interval as Interval
from localhessian.study.comparison._statistics import interval as interval
from localhessian.study.comparison._trainer import Curve as Curve
from localhessian.study.comparison._trainer import State as State
from localhessian.study.comparison._trainer import Trainer as Trainer
