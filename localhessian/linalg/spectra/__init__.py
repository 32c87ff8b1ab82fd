"""What a spectrum says: the answer, the rank rule, condition numbers, summaries, completeness."""

from localhessian.linalg.spectra._certify import certify as certify
from localhessian.linalg.spectra._condition import ConditionNumber as ConditionNumber
from localhessian.linalg.spectra._condition import condition_number as condition_number
from localhessian.linalg.spectra._condition import quantile_condition_number as quantile_condition_number
from localhessian.linalg.spectra._rank import RANK_RULE as RANK_RULE
from localhessian.linalg.spectra._rank import counted as counted
from localhessian.linalg.spectra._rank import cutoff as cutoff
from localhessian.linalg.spectra._rank import noise as noise
from localhessian.linalg.spectra._spectrum import Jacobi as Jacobi
from localhessian.linalg.spectra._spectrum import Spectrum as Spectrum
from localhessian.linalg.spectra._spectrum import SpectrumError as SpectrumError
from localhessian.linalg.spectra._spectrum import SpectrumInterrupt as SpectrumInterrupt
from localhessian.linalg.spectra._spectrum import missed as missed
from localhessian.linalg.spectra._spectrum import packed as packed
from localhessian.linalg.spectra._spectrum import within_range as within_range
from localhessian.linalg.spectra._spectrum import working_dtype as working_dtype
from localhessian.linalg.spectra._summaries import Summary as Summary
from localhessian.linalg.spectra._summaries import summarize as summarize
