"""Operators and their spectra. Knows no networks."""

from localhessian.linalg._audit import Audit as Audit
from localhessian.linalg._audit import audit as audit
from localhessian.linalg._certify import certify as certify
from localhessian.linalg._condition import ConditionNumber as ConditionNumber
from localhessian.linalg._condition import condition_number as condition_number
from localhessian.linalg._condition import quantile_condition_number as quantile_condition_number
from localhessian.linalg._dense import Dense as Dense
from localhessian.linalg._golub_kahan import GolubKahan as GolubKahan
from localhessian.linalg._lanczos import Lanczos as Lanczos
from localhessian.linalg._operators import LinearMap as LinearMap
from localhessian.linalg._operators import SymmetricOperator as SymmetricOperator
from localhessian.linalg._operators import gram as gram
from localhessian.linalg._operators import lazy_map as lazy_map
from localhessian.linalg._operators import lazy_operator as lazy_operator
from localhessian.linalg._operators import linear_map as linear_map
from localhessian.linalg._operators import matrix_map as matrix_map
from localhessian.linalg._operators import symmetric_operator as symmetric_operator
from localhessian.linalg._solve import Method as Method
from localhessian.linalg._solve import SpectrumError as SpectrumError
from localhessian.linalg._solve import spectrum as spectrum
from localhessian.linalg._spectrum import Spectrum as Spectrum
from localhessian.linalg._summaries import Summary as Summary
from localhessian.linalg._summaries import TraceEstimate as TraceEstimate
from localhessian.linalg._summaries import summarize as summarize
from localhessian.linalg._summaries import trace as trace
