"""Networks as chains of blocks: forward values, displacements, back-matching losses. Knows no spectra."""

from localhessian.network._backmatching import BackMatching as BackMatching
from localhessian.network._backmatching import back_match as back_match
from localhessian.network._backmatching import back_matching_loss as back_matching_loss
from localhessian.network._chain import Block as Block
from localhessian.network._chain import Chain as Chain
from localhessian.network._cut import Cut as Cut
from localhessian.network._cut import TracedChain as TracedChain
from localhessian.network._cut import chain_from_function as chain_from_function
from localhessian.network._equinox import chain_from_equinox as chain_from_equinox
from localhessian.network._jacobian import Place as Place
from localhessian.network._jacobian import Variables as Variables
from localhessian.network._jacobian import View as View
from localhessian.network._jacobian import batch_of as batch_of
from localhessian.network._jacobian import flatten as flatten
from localhessian.network._jacobian import jacobian as jacobian
from localhessian.network._jaxpr import CutError as CutError
from localhessian.network._linen import chain_from_linen as chain_from_linen
from localhessian.network._mark import mark as mark
from localhessian.network._nnx import chain_from_nnx as chain_from_nnx
from localhessian.network._per_sample import contexts_of as contexts_of
from localhessian.network._per_sample import first_samples as first_samples
from localhessian.network._per_sample import sample_indices as sample_indices
from localhessian.network._validate import admit as admit
from localhessian.network._validate import run_chain as run_chain
from localhessian.network._validate import validate_values as validate_values
