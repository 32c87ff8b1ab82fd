"""Shape letters and callable types that every room shares.

Letters: `n` samples in a batch, `d` size of an operator, `m` output size of a linear map, `k` eigenvalues
returned, `s` independent problems in a batched operator (a leading axis `*s` that may be absent).
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

AnyArray: TypeAlias = Array | np.ndarray
"""Of JAX, or of NumPy where numbers are at hand."""
Key: TypeAlias = jax.Array
Scalar: TypeAlias = Float[Array, ""]
Flat: TypeAlias = Float[Array, "*s d"]
Params: TypeAlias = PyTree
Activations: TypeAlias = PyTree
Context: TypeAlias = PyTree
Loss: TypeAlias = Callable[[Any, Any], Float[Array, " n"]]

__all__ = [
    "Activations",
    "AnyArray",
    "Array",
    "Bool",
    "Context",
    "Flat",
    "Float",
    "Int",
    "Key",
    "Loss",
    "Params",
    "PyTree",
    "Scalar",
]
