"""What comes after what in a compiled program.

XLA runs independent parts of a program side by side on the CPU, and the LAPACK calls of jaxlib 0.10 hand their batches
to the very threads that they occupy: as many such calls at once as there are threads wait for each other for ever.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from localhessian._mesh import is_spread
from localhessian._tree import is_concrete, is_floating

Tree = TypeVar("Tree")


def after(before: Any, tree: Tree) -> Tree:
    """The same tree, whose traced numbers are there only when `before` is, an array of floating point.

    A condition that no number meets, and of which XLA does not know that: barriers it takes away before it schedules.
    """
    never = jnp.any(jnp.abs(before) < -1)

    def tied(leaf: Any) -> Any:
        if is_concrete(leaf) or not is_floating(leaf):
            return leaf
        return jnp.where(never, jnp.zeros((), leaf.dtype), leaf)

    return jax.tree.map(tied, tree)


def each(decompose: Callable[[Any], Any], matrices: Any) -> Any:
    """A decomposition of every matrix `(.., m, n)`: all at once, but in a program on several CPU devices in turn.

    There every device makes the same call at the same time, and a BLAS with threads of its own may not come to an end.
    """
    lead, shape = matrices.shape[:-2], matrices.shape[-2:]
    if math.prod(lead) <= 1 or jax.default_backend() != "cpu" or not is_spread(matrices):
        return decompose(matrices)
    found = jax.lax.map(decompose, matrices.reshape(-1, *shape))
    return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), found)
