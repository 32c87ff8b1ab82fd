"""One clear sentence for bad input, naming the block and the remedy."""

import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect_function
from localhessian._memory import as_key
from localhessian._mesh import is_elsewhere, is_here
from localhessian._programs import compiled, full_precision
from localhessian._tree import floating, floating_leaves, is_floating, raw_bytes, to_device
from localhessian._types import Activations, Context, Loss, Params
from localhessian.network._birth import birth
from localhessian.network._chain import Chain, check_chain, check_params
from localhessian.network._finite import all_finite, check_finite
from localhessian.network._leaves import check_leaves
from localhessian.network._per_sample import answer
from localhessian.network._traced import Inapplicable, first_line, trace, trace_loss


def admit(
    chain: Chain, params: dict[str, Params], x: Activations, y: Any, loss: Loss, context: Context
) -> tuple[Loss, Context]:
    """Check all that can be known without numbers; the loss as a key of programs, and the context of the blocks for x.

    What was checked for a chain or a loss at some shapes, under the same settings of JAX, is not checked again.

    Raises:
        Inapplicable: A block cannot be applied to what it is given (a ValueError).
        KeyError: `params` names a block that is not in the chain.
        TypeError: The loss has no hash; an argument is of another kind.
        ValueError: Anything else.
    """
    check_chain(chain, params)
    check_params("params", params, chain)
    expect_function("loss", loss, "a function of (z_B, y)", takes=2)
    loss = as_key(loss, "`loss`")
    check_leaves(params, x, y, context)
    with full_precision():  # a cut chain is cut for settings of JAX, which it keeps in its context
        context = chain.context_for(x, context, params)
    try:
        z = trace(chain, params, x, context).output
    except Inapplicable as error:
        if error.name in params:
            raise
        raise ValueError(
            f"`params` has no entry for block `{error.name}`, and the block cannot be applied without: "
            f"add `params[{error.name!r}]`. ({first_line(error.error)})"
        ) from error
    trace_loss(loss, z, y)
    return loss, context


def run_chain(
    chain: Chain, params: dict[str, Params], x: Activations, context: Context, depth: int | None = None
) -> tuple[Activations, ...]:
    """The forward pass, of the first `depth` blocks, one compiled program for each kind of block."""
    activations = [x]
    for name, kind in list(zip(chain.names, trace(chain, params, x, context).run_as(chain), strict=True))[:depth]:
        activations.append(answer(kind, params[name], activations[-1], context))
    return tuple(activations)


def validate_values(
    chain: Chain,
    params: dict[str, Params],
    y: Any,
    context: Context,
    activations: tuple[Activations, ...],
    losses: Any,
    loss: Loss,
    unlike: Collection[str] | None = None,
) -> None:
    """Check numbers: finite parameters, data, activations and losses, and the same answer twice.

    `unlike` are the blocks that answered otherwise when they were run again; None runs them again.

    Raises:
        ValueError: The message names the block, or what is wrong with the labels.
    """
    if not all_finite((params, y, activations, losses)):
        check_finite("`x`", activations[0])
        check_finite("`y`", y)
        for block, before, z in zip(chain.blocks, activations, activations[1:], strict=False):
            check_finite(f"the parameters of block `{block.name}`", params[block.name])
            why = functools.partial(birth, block, params[block.name], before, context)
            check_finite(f"the output of block `{block.name}`", z, "its parameters and input are finite; it is ", why)
        why = functools.partial(birth, loss, activations[-1], y)
        check_finite("the loss", losses, "the outputs of the network are finite; it is ", why)
    _check_labels(loss, activations[-1], y)
    if unlike is None:
        again = run_chain(chain, params, activations[0], context)
        unlike = [name for name, *pair in zip(chain.names, activations[1:], again[1:], strict=True) if not same(*pair)]
    steady = trace(chain, params, activations[0], context).steady
    for name, is_steady in zip(chain.names, steady, strict=True):
        if name in unlike or not is_steady:
            raise ValueError(
                f"block `{name}` answers differently when called twice with the same input: pass its random key in "
                "`context` (dropout), or run the model in inference mode."
            )


def _check_labels(loss: Loss, z: Activations, y: Any) -> None:
    """Refuse negative labels where the loss counts them from the last class, as indexing does, without a word."""
    leaves, treedef = jax.tree.flatten(y)
    classes = floating_leaves(z)[0].shape[-1]
    negative = [_from_the_last(leaf, classes) for leaf in leaves]
    if not any(np.any(which) for which in negative):
        return

    def instead(change: Callable[[Any], Any]) -> Any:
        pairs = zip(leaves, negative, strict=True)
        return jax.tree.unflatten(
            treedef, [jnp.where(which, change(leaf), leaf) if np.any(which) else leaf for leaf, which in pairs]
        )

    # Outputs of which no two are alike, and which may be logits as well as probabilities.
    random, (outputs, rebuild) = np.random.default_rng(0), floating(z)
    unlike = rebuild([to_device(random.uniform(0.1, 0.9, leaf.shape), leaf.dtype) for leaf in outputs])
    given, from_the_last, other = (
        np.asarray(answer(loss, unlike, labels))
        for labels in (y, instead(lambda leaf: leaf + classes), instead(lambda leaf: (leaf + 1) % classes))
    )
    # A loss that gives them no weight differs from the first, one that does not look at labels agrees with the second.
    if np.array_equal(given, from_the_last) and not np.array_equal(given, other):
        raise ValueError(
            f"`y` holds negative labels, which the loss counts from the last of {classes} classes: leave these samples "
            "out, or let the loss give them no weight."
        )


def _from_the_last(leaf: Any, classes: int) -> Any:
    """Where an integer is what indexing counts from the last class."""
    if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.signedinteger) and is_here(leaf)):
        return np.zeros((), bool)
    values = np.asarray(leaf)
    return (values < 0) & (values >= -classes)


def same(one: Any, two: Any) -> bool:
    """Whether two trees hold the same bits; of numbers that only other processes have, the same numbers."""
    if is_elsewhere(one, two):
        return bool(_equal(jax.tree.leaves(one), jax.tree.leaves(two)))
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(raw_bytes(a) == raw_bytes(b) for a, b in pairs)


@compiled
def _equal(one: list[Any], two: list[Any]) -> Any:
    return jnp.all(jnp.stack([jnp.array_equal(a, b, equal_nan=is_floating(a)) for a, b in zip(one, two, strict=True)]))
