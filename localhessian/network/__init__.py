"""Networks as chains of blocks: forward values, displacements, back-matching losses. Knows no spectra."""

from localhessian.network._backmatching import BackMatching as BackMatching
from localhessian.network._backmatching import back_match as back_match
from localhessian.network._backmatching import back_matching_loss as back_matching_loss
from localhessian.network._chain import Block as Block
from localhessian.network._chain import Chain as Chain
