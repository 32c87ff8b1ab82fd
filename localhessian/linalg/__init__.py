"""Operators and their spectra. Knows no networks."""

from localhessian.linalg._operators import LinearMap as LinearMap
from localhessian.linalg._operators import SymmetricOperator as SymmetricOperator
from localhessian.linalg._operators import gram as gram
from localhessian.linalg._operators import lazy_map as lazy_map
from localhessian.linalg._operators import lazy_operator as lazy_operator
from localhessian.linalg._operators import linear_map as linear_map
from localhessian.linalg._operators import matrix_map as matrix_map
from localhessian.linalg._operators import symmetric_operator as symmetric_operator
from localhessian.linalg._spectrum import Spectrum as Spectrum
