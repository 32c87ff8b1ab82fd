"""Decompositions inside compiled programs: on the CPU one matrix after the other.

XLA runs independent parts of a program side by side on the CPU, and the LAPACK calls of jaxlib 0.10 hand the matrices
of a batch to the very threads that they occupy: as many such calls at once as there are threads wait for each other for
ever. A call for a single matrix hands nothing over, and decompositions of several operators still run side by side.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._blas import threads_that_pay


def one_by_one(decompose: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function of matrices (*, m, n), which LAPACK meets alone; under `jax.vmap` too.

    Args:
        decompose: Of one matrix, or of several.

    Returns:
        A function of arrays of JAX. Its derivatives are those of `decompose`.
    """

    @jax.custom_batching.custom_vmap
    def in_turn(matrices: Any) -> Any:
        *lead, m, n = matrices.shape
        flat = matrices.reshape(math.prod(lead), m, n)
        if len(flat) == 1:
            found = jax.tree.map(lambda part: part[None], decompose(flat[0]))
        else:
            found = jax.lax.map(decompose, flat)
        return jax.tree.map(lambda part: part.reshape(*lead, *part.shape[1:]), found)

    @in_turn.def_vmap
    def batched(_: int, __: Any, matrices: Any) -> tuple[Any, Any]:
        found = in_turn(matrices)
        return found, jax.tree.map(lambda _: True, found)

    @jax.custom_jvp
    def run(matrices: Any) -> Any:
        return jax.lax.platform_dependent(matrices, cpu=in_turn, default=decompose)

    @run.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        return jax.jvp(decompose, primals, tangents)

    del batched, derivative
    return jax.jit(run)  # outside of programs each call would compile its loop anew


def _either(name: str, **settings: Any) -> Callable[[Any], Any]:
    """By NumPy of arrays of NumPy, else in a program."""
    decompose = functools.partial(getattr(np.linalg, name), **settings)

    def of_numpy(matrices: np.ndarray) -> Any:
        with threads_that_pay(math.prod(matrices.shape[-2:])):
            return decompose(matrices)

    in_program = one_by_one(lambda matrix: tuple(getattr(jnp.linalg, name)(matrix, **settings)))
    return lambda matrices: (of_numpy if isinstance(matrices, np.ndarray) else in_program)(matrices)


eigh = _either("eigh")
"""Eigenvalues ascending, and eigenvectors in columns."""
svd = _either("svd", full_matrices=False)
"""Left singular vectors in columns, singular values descending, right ones in rows."""
complete_svd = _either("svd", full_matrices=True)
"""The same, with both sides complete."""
qr = _either("qr")
"""Orthonormal columns and a triangle."""
