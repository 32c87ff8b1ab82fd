"""Boundaries inside any function: `mark` leaves a trace that the cut finds and that nothing else notices."""

from dataclasses import dataclass

import jax
from jax.ad_checkpoint import checkpoint_name

from localhessian._programs import MARKS
from localhessian._types import Activations
from localhessian.network._leaves import check_arrays

ALIGN = MARKS + "align"
END = "end"
HALF = "half"
OUT = "out"
START = "start"
STOP = "stop"


@dataclass(frozen=True)
class Tag:
    """What the name of one marked leaf says: leaf `leaf` of `leaves`, of the boundary `name`.

    An `end` tag (of `mark`) names the block before it and must cut, and so must an `out` tag, where a module or a scope
    asked for ends; what the outputs do not need of its values is no part of z. Adapters propose: a `start` tag where a
    layer of that name begins, a `stop` tag where it returns, a `half` tag where the first of its two directions does.
    These are dropped where they do not cut.
    """

    kind: str
    leaf: int
    leaves: int
    name: str

    def __str__(self) -> str:
        """The form `parse` reads."""
        return f"{MARKS}{self.kind}:{self.leaf}:{self.leaves}:{self.name}"


def parse(text: str) -> Tag | None:
    """The tag in a checkpoint name; None for the names that users give themselves, and for `ALIGN`."""
    if not text.startswith(MARKS) or text == ALIGN:
        return None
    kind, leaf, leaves, name = text.removeprefix(MARKS).split(":", 3)
    return Tag(kind, int(leaf), int(leaves), name)


def mark(z: Activations, name: str) -> Activations:
    """Say that a block ends here: an identity that `chain_from_function` cuts at.

    Outside a cut it changes nothing: values, gradients, `jit`, `vmap` and `jax.checkpoint` work as without it.

    Args:
        z: The activations that leave the block, a pytree of arrays with the samples on the leading axis. A value that
            a later block needs besides them goes in as well: `h, skip = lh.mark((h, skip), "stem")`.
        name: The name of the block that ends here. A name used twice (a layer applied twice, a scan) gets `[0]`,
            `[1]`, .. in the chain.

    Returns:
        `z`, unchanged. Of several arrays, the chain's z is the flat tuple of them.

    Raises:
        TypeError: `name` is not a string.
        ValueError: `z` holds no array.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> def network(params, x):
        ...     h = lh.mark(jnp.tanh(x @ params["hidden"]), "hidden")
        ...     return h @ params["head"]
        >>> params = {"hidden": jnp.ones((2, 3)), "head": jnp.ones((3, 1))}
        >>> lh.chain_from_function(network, params, jnp.ones((5, 2))).chain.names
        ('hidden', 'output')
    """
    return tagged(z, name, END)


def tagged(z: Activations, name: str, kind: str) -> Activations:
    """The identity with a tag on every leaf."""
    if not isinstance(name, str):
        raise TypeError(f"`name` of a mark must be a string, got {type(name).__name__}.")
    check_arrays("`z`", z)
    leaves, treedef = jax.tree.flatten(z)
    if not leaves:
        raise ValueError(f"`mark(z, {name!r})`: `z` holds no array.")
    # Under vmap a value may hold its samples on any axis. What leaves a jax.checkpoint holds them on the leading one,
    # so the tag outside it lands on an activation as blocks want them.
    align = jax.checkpoint(lambda leaf: checkpoint_name(leaf, ALIGN), prevent_cse=False)
    tags = [str(Tag(kind, i, len(leaves), name)) for i in range(len(leaves))]
    return jax.tree.unflatten(
        treedef, [checkpoint_name(align(leaf), tag) for leaf, tag in zip(leaves, tags, strict=True)]
    )
