"""Numbers that are not finite: one sentence that says where."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._mesh import is_elsewhere
from localhessian._programs import at_once, compiled
from localhessian._tree import is_floating


def check_finite(what: str, tree: Any, hint: str = "", why: Callable[[], str] = str) -> None:
    """Refuse numbers that are not finite: a ValueError with what, where, a hint, and why, found out only then."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not all_finite(leaf):
            place = f" at `{jax.tree_util.keystr(path)}`" if path else ""
            verb, whom = ("are", "them") if what.startswith("the parameters") else ("is", "it")
            hint = hint or f"remove NaN and infinity from {whom}"
            raise ValueError(f"{what} {verb} not finite{place}: {hint}{why()}.")


def all_finite(tree: Any) -> bool:
    """Whether every floating-point number is."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    if jax.default_backend() == "cpu" and not is_elsewhere(leaves):  # shared memory, and no program for each shape
        return all(bool(np.all(np.isfinite(np.asarray(leaf)))) for leaf in leaves)
    with at_once():  # they are numbers also where others are traced
        return bool(_all_finite(leaves))


@compiled
def _all_finite(leaves: list[Any]) -> Any:
    """One program, whatever there is to look at."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else True
