"""One clear sentence for bad input, naming the block and the remedy."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from localhessian._arguments import expect, expect_function
from localhessian._memory import as_key, remembered
from localhessian._programs import compiled
from localhessian._tree import floating, raw_bytes, shapes
from localhessian._types import Activations, Context, Loss, Params
from localhessian.network._birth import birth
from localhessian.network._chain import Block, Chain
from localhessian.network._finite import check_finite
from localhessian.network._leaves import check_leaves, check_real, check_samples


def admit(
    chain: Chain, params: dict[str, Params], x: Activations, y: Any, loss: Loss, context: Context
) -> tuple[Loss, Context]:
    """Check all that can be known without numbers; the loss as a key of programs, and the context of the blocks for x.

    Raises:
        KeyError: `params` names a block that is not in the chain.
        TypeError: The loss has no hash; an argument is of another kind.
        ValueError: Anything else.
    """
    expect("chain", chain, Chain, "a chain, as `lh.Chain` and `lh.chain_from_nnx` give one (the first argument)")
    expect("params", params, Mapping, "a dictionary with the parameters of each block by its name")
    expect_function("loss", loss, "a function of (z_B, y)", takes=2)
    loss = as_key(loss, "`loss`")
    check_leaves(params, x, y, context)
    context = chain.context_for(x, context, params)
    validate_shapes(chain, params, x, y, loss, context)
    return loss, context


def validate_shapes(
    chain: Chain, params: dict[str, Params], x: Activations, y: Any, loss: Loss, context: Context
) -> None:
    """Trace every block once and check what can be known without numbers; raises ValueError or KeyError."""
    for name in params:
        chain.index(name)
    n = _batch_size("x", x)
    z = jax.tree.map(_abstract, x)
    for block in chain.blocks:
        z = _block_output(block, params.get(block.name), z, context, n, given=block.name in params)
    _check_loss(loss, z, y, n)


def run_chain(chain: Chain, params: dict[str, Params], x: Activations, context: Context) -> tuple[Activations, ...]:
    """The forward pass, one compiled program for each kind of block."""
    activations = [x]
    for block in chain.blocks:
        activations.append(_run(block.anonymous, params[block.name], activations[-1], context))
    return tuple(activations)


@compiled(static_argnums=0)
def _run(block, params: Params, z: Activations, context: Context) -> Activations:
    return block(params, z, context)


def validate_values(
    chain: Chain,
    params: dict[str, Params],
    y: Any,
    context: Context,
    activations: tuple[Activations, ...],
    losses: Any,
    loss: Loss,
) -> None:
    """Check numbers: finite parameters, data, activations and losses, and the same answer twice; raises ValueError."""
    check_finite("`x`", activations[0])
    check_finite("`y`", y)
    for block, before, z in zip(chain.blocks, activations, activations[1:], strict=False):
        check_finite(f"the parameters of block `{block.name}`", params[block.name])
        why = functools.partial(birth, block, params[block.name], before, context)
        check_finite(f"the output of block `{block.name}`", z, "its parameters and input are finite; it is ", why)
    why = functools.partial(birth, loss, activations[-1], y)
    check_finite("the loss", losses, "the outputs of the network are finite; it is ", why)
    _check_same_answer(chain, params, context, activations)


def _batch_size(name: str, tree: Any) -> int:
    n = check_samples(name, tree)
    if n == 0:
        raise ValueError(f"`{name}` is an empty batch, got {shapes(tree)}: pass at least one sample.")
    return n


def _block_output(block, params, z, context, n: int, given: bool) -> Any:
    params = params if given else ()
    try:
        out = jax.eval_shape(block, params, z, context)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        if not given:
            raise ValueError(
                f"`params` has no entry for block `{block.name}`, and the block cannot be applied without: "
                f"add `params[{block.name!r}]`. ({_first_line(error)})"
            ) from error
        raise ValueError(
            f"block `{block.name}` cannot be applied to an input of {shapes(z)} with parameters {shapes(params)}: "
            f"make the shapes of `x` and `params` fit. ({_first_line(error)})"
        ) from error
    check_real(f"the output of block `{block.name}`", out)
    _check_derivatives(block, params, z, context)
    leading = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(out)}
    if leading != {n}:
        raise ValueError(
            f"block `{block.name}` must keep the {n} samples on the leading axis of everything it returns, got "
            f"{shapes(out)}: reshape its output, or move what is not per sample into `context`."
        )
    if not floating_shapes(out):
        raise ValueError(
            f"block `{block.name}` returns no floating-point array, got {shapes(out)}, so nothing can be "
            "differentiated through it: join it with the block that makes floating-point activations."
        )
    return out


def _check_derivatives(block, params, z, context) -> None:
    try:
        _block_derivatives(block.apply, *_abstracted((params, z, context)))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(_no_derivative(f"block `{block.name}`", error)) from error


@remembered
def _block_derivatives(apply, treedef, leaves) -> None:
    """Trace both derivatives of a block."""
    block: Any = Block("", apply)

    def products(params, z, context):
        inputs, rebuild = floating((params, z))
        outputs, jvp = jax.linearize(lambda leaves: floating(block(*rebuild(leaves), context))[0], inputs)
        return _forward_and_reverse(jvp, inputs, outputs)

    jax.eval_shape(products, *jax.tree.unflatten(treedef, leaves))


def _forward_and_reverse(jvp, inputs: list, outputs: list):
    # A custom_vjp shows only when its linearization is transformed again.
    forward = jax.vmap(jvp)([leaf[None] for leaf in inputs])
    return forward, jax.linear_transpose(jvp, inputs)(outputs)


def _no_derivative(what: str, error: Exception) -> str:
    """Which of the two derivatives that curvature needs there is not."""
    text = str(error)
    if "custom_vjp" in text:
        return (
            f"{what} has no forward derivative (`jax.custom_vjp` allows none), which curvature needs: define its "
            f"derivative by `jax.custom_jvp`, or leave it to jax. ({_first_line(error)})"
        )
    return (
        f"{what} cannot be differentiated forward and in reverse, which curvature needs both: write a "
        "`lax.while_loop` as a `lax.scan` of fixed length, and a callback in JAX, or give it a `jax.custom_jvp`. "
        f"({_first_line(error)})"
    )


def floating_shapes(tree: Any) -> list:
    """The floating-point leaves of a pytree of shapes."""
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def _check_loss(loss: Loss, z: Any, y: Any, n: int) -> None:
    try:
        out = jax.eval_shape(loss, z, y)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"`loss(z_B, y)` cannot be applied to the network's output {shapes(z)} and `y` of {shapes(y)}: make the "
            f"shapes fit. ({_first_line(error)})"
        ) from error
    if getattr(out, "shape", None) != (n,):
        raise ValueError(
            f"`loss` must return one loss for each of the {n} samples, shape ({n},), got {shapes(out)}: return "
            "per-sample losses and leave the mean to localhessian."
        )
    _check_loss_derivatives(loss, z, y)


def _check_loss_derivatives(loss: Loss, z: Any, y: Any) -> None:
    try:
        _loss_derivatives(loss, *_abstracted((z, y)))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(_no_derivative("`loss`", error)) from error


@remembered
def _loss_derivatives(loss: Loss, treedef, leaves) -> None:
    """Trace the Hessian of a loss."""

    def hessian(z, y):
        outputs, rebuild = floating(z)
        gradient, jvp = jax.linearize(jax.grad(lambda leaves: loss(rebuild(leaves), y).sum()), outputs)
        return gradient, jax.vmap(jvp)([leaf[None] for leaf in outputs])

    jax.eval_shape(hessian, *jax.tree.unflatten(treedef, leaves))


def _check_same_answer(chain: Chain, params, context, activations) -> None:
    """Trace twice for randomness of the host (it is baked into a program), run twice for randomness of the device."""
    again = run_chain(chain, params, activations[0], context)
    for block, z, one, two in zip(chain.blocks, activations, activations[1:], again[1:], strict=False):
        if not _same(one, two) or not _traces_the_same(block.anonymous, params[block.name], z, context):
            raise ValueError(_differs(block.name))


def _traces_the_same(block, params, z, context) -> bool:
    return _traces_the_same_for(block.apply, *_abstracted((params, z, context)))


@remembered
def _traces_the_same_for(apply, treedef, leaves) -> bool:
    block, arguments = Block("", apply), jax.tree.unflatten(treedef, leaves)

    def trace():
        # A new function object each time: jax would remember the trace of the old one.
        return jax.make_jaxpr(lambda *arguments: block(*arguments))(*arguments)  # noqa: PLW0108

    one, two = trace(), trace()
    return str(one) == str(two) and all(_same(a, b) for a, b in zip(one.consts, two.consts, strict=True))


def _differs(name: str) -> str:
    return (
        f"block `{name}` answers differently when called twice with the same input: pass its random key in `context` "
        "(dropout), or run the model in inference mode."
    )


def _same(one: Any, two: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(raw_bytes(a) == raw_bytes(b) for a, b in pairs)


def _abstracted(tree: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """The structure and the shapes of a pytree, hashable."""
    leaves, treedef = jax.tree.flatten(jax.tree.map(_abstract, tree))
    return treedef, tuple(leaves)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
