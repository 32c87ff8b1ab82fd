"""Fair comparisons of training algorithms: equal budgets, several seeds, intervals."""

from localhessian.analysis import Mean as Mean
from localhessian.analysis import interval as interval
from localhessian.lab.comparison._algorithm import Algorithm as Algorithm
from localhessian.lab.comparison._algorithm import Batch as Batch
from localhessian.lab.comparison._algorithm import Descent as Descent
from localhessian.lab.comparison._algorithm import Stepped as Stepped
from localhessian.lab.comparison._algorithms import DEFAULT_ALGORITHMS as DEFAULT_ALGORITHMS
from localhessian.lab.comparison._algorithms import algorithm as algorithm
from localhessian.lab.comparison._checkpoint import Checkpoint as Checkpoint
from localhessian.lab.comparison._compare import compare as compare
from localhessian.lab.comparison._comparison import Comparison as Comparison
from localhessian.lab.comparison._outcome import Outcome as Outcome
from localhessian.lab.comparison._outcome import Tuned as Tuned
from localhessian.lab.comparison._plan import Plan as Plan
from localhessian.lab.comparison._propagation import Propagation as Propagation
from localhessian.lab.comparison._run import Run as Run
from localhessian.lab.comparison._trainer import Curve as Curve
from localhessian.lab.comparison._trainer import State as State
from localhessian.lab.comparison._trainer import Trainer as Trainer
from localhessian.lab.comparison._trainer import batch_indices as batch_indices
from localhessian.lab.zoo import Network as Network
from localhessian.lab.zoo import network as network
from localhessian.lab.zoo import nnx_network as nnx_network
