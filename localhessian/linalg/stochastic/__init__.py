"""What random vectors tell: traces, moments, quadrature, densities."""

from localhessian.linalg.stochastic._deflation import HutchPlusPlus as HutchPlusPlus
from localhessian.linalg.stochastic._deflation import XTrace as XTrace
from localhessian.linalg.stochastic._density import spectral_density as spectral_density
from localhessian.linalg.stochastic._distribution import Density as Density
from localhessian.linalg.stochastic._distribution import Interval as Interval
from localhessian.linalg.stochastic._distribution import QuadratureEstimate as QuadratureEstimate
from localhessian.linalg.stochastic._hutchinson import Hutchinson as Hutchinson
from localhessian.linalg.stochastic._moments import frobenius_norm as frobenius_norm
from localhessian.linalg.stochastic._moments import range_mean as range_mean
from localhessian.linalg.stochastic._probes import TraceEstimate as TraceEstimate
from localhessian.linalg.stochastic._traces import diagonal as diagonal
from localhessian.linalg.stochastic._traces import trace as trace
