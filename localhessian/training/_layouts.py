"""The two layouts that gradients come in: that of the blocks, and that of the model a chain was cut from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from localhessian._programs import compiled_if_eager
from localhessian._tree import floating
from localhessian._types import Array, Params
from localhessian.network import Chain, in_blocks


def each_block(tree: dict[str, Params], function: Callable[[str, Params], Params]) -> dict[str, Params]:
    """function(name, tree of the block) for each block of a dictionary, in the structure that came in."""
    blocks, outer = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    return jax.tree.unflatten(outer, [function(path[0].key, of_block) for path, of_block in blocks])


def check_unmasked(tree: Any) -> None:
    """Refuse the gaps that `optax.masked` leaves (ValueError)."""
    if any(map(_is_gap, jax.tree.leaves(tree, is_leaf=_is_gap))):
        raise ValueError(
            "`scale_by_local_hessian` needs the parameters and gradients of every block, and a mask (`optax.masked`, "
            "`optax.partition`) hides some: apply the mask to what comes before or after it, as in "
            "`optax.chain(lh.scale_by_local_hessian(chain, loss), optax.partition(...))`."
        )


def _is_gap(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def scaled(chain: Chain, factors: Array, updates: Any, by_block: dict[str, Params]) -> Any:
    """The gradients of each block times its factor, in the layout they came in.

    In the layout of the blocks each use of a tied array has its own gradient: at each use stands the sum of the scaled
    ones. In that of the model only their sum is there: it is multiplied by the mean factor.
    """
    if in_blocks(chain, updates, "updates"):
        times = each_block(updates, lambda name, of_block: _times(factors, chain.index(name), of_block))
        summed = chain.sum_tied(dict(times))
        return each_block(times, lambda name, _: summed[name])
    leaves, structure = jax.tree.flatten(updates)
    return jax.tree.unflatten(structure, _times_in_model(chain, factors, by_block, leaves))


def _times(factors: Array, b: int, tree: Any) -> Any:
    leaves, rebuild = floating(tree)
    return rebuild(_leaves_times(factors, b, leaves))


@compiled_if_eager()
def _leaves_times(factors: Array, b: Any, leaves: list[Array]) -> list[Array]:
    return [factors[b].astype(leaf.dtype) * leaf for leaf in leaves]


@compiled_if_eager(static_argnums=0)
def _times_in_model(chain: Any, factors: Array, by_block: dict[str, Any], leaves: list[Array]) -> list[Array]:
    """Each array of the model times the mean factor of the blocks that use it."""

    def filled(values: Array) -> list[Array]:
        trees = {
            name: jax.tree.map(lambda leaf, b=b: jnp.full(leaf.shape, values[b], values.dtype), by_block[name])
            for b, name in enumerate(chain.names)
            if name in by_block
        }
        return jax.tree.leaves(chain.merge(trees, tied="sum"))

    sums = zip(leaves, filled(factors), filled(jnp.ones_like(factors)), strict=True)
    return [leaf * (total / jnp.maximum(uses, 1)).astype(leaf.dtype) for leaf, total, uses in sums]
