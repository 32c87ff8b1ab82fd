"""Any model becomes a chain: marks, the graph between them, adapters of frameworks."""

from localhessian.network.cutting._cut import Cut as Cut
from localhessian.network.cutting._cut import TracedChain as TracedChain
from localhessian.network.cutting._cut import by_block as by_block
from localhessian.network.cutting._cut import chain_from_function as chain_from_function
from localhessian.network.cutting._cut import in_blocks as in_blocks
from localhessian.network.cutting._equinox import chain_from_equinox as chain_from_equinox
from localhessian.network.cutting._linen import chain_from_linen as chain_from_linen
from localhessian.network.cutting._mark import mark as mark
from localhessian.network.cutting._nnx import chain_from_nnx as chain_from_nnx
from localhessian.network.cutting._open import CutError as CutError
