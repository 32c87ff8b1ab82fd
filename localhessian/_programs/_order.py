"""What comes after what in a compiled program.

XLA runs independent parts of a program side by side on the CPU, and the LAPACK calls of jaxlib 0.10 hand their batches
to the very threads that they occupy: as many such calls at once as there are threads wait for each other for ever.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

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
