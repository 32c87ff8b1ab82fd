"""Networks as chains of blocks: forward values, displacements, back-matching losses. Knows no spectra."""

from localhessian.network._chain import Block as Block
from localhessian.network._chain import Chain as Chain
