"""What is known of a chain from shapes alone: traced once for each set of them, and refused in one sentence.

Blocks that trace to one program share what is compiled: each is run as the first of its kind.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from localhessian._memory import remembered
from localhessian._programs import NO_DERIVATIVE, Program, Text, has_custom_rule, traced
from localhessian._tree import (
    abstracted,
    floating,
    floating_leaves,
    is_concrete,
    is_floating,
    of_shapes,
    raw_bytes,
    shapes,
)
from localhessian._types import Activations, Context, Loss, Params
from localhessian.network._alone import answers_alone
from localhessian.network._apart import keeps_apart
from localhessian.network._chain import Block, Chain
from localhessian.network._derivatives import have_derivatives, trace_derivatives
from localhessian.network._leaves import check_real, check_samples
from localhessian.network._per_sample import MISFIT


class Traced(NamedTuple):
    """Of a chain, for some shapes."""

    output: Any
    """The shapes of z_B."""
    kinds: tuple[int, ...]
    """For each block the first that computes the same."""
    steady: tuple[bool, ...]
    """For each block, whether it traces to the same program again: randomness of the host is baked into it."""
    apart: tuple[bool, ...]
    """For each block, whether its program proves that it keeps the samples apart."""

    def run_as(self, chain: Chain) -> tuple[Block, ...]:
        """For each block the first that computes the same, without its name: a key of programs."""
        return tuple(chain.blocks[first].anonymous for first in self.kinds)


class Inapplicable(ValueError):
    """A block cannot be applied to what it is given."""

    def __init__(self, name: str, z: Any, params: Any, error: Exception) -> None:
        """Word the sentence."""
        self.name, self.error = name, error
        super().__init__(
            f"block `{name}` cannot be applied to an input of {shapes(z)} with parameters {shapes(params)}: "
            f"make the shapes of `x` and `params` fit. ({first_line(error)})"
        )


def trace(chain: Chain, params: dict[str, Params], x: Activations, context: Context) -> Traced:
    """Trace every block once, and check what can be known without numbers; remembered for as long as the chain lives.

    Raises:
        ValueError: The message names the block.
    """
    return _traced(chain, *abstracted(({name: params.get(name, ()) for name in chain.names}, x, context)))


@remembered
def _traced(chain: Chain, treedef: Any, leaves: Any) -> Traced:
    params, z, context = of_shapes(treedef, leaves)
    n, seen, firsts = check_samples("x", z), list[_Seen](), list[_Seen]()
    if n == 0:
        raise ValueError(f"`x` is an empty batch, got {shapes(z)}: pass at least one sample.")
    for b, block in enumerate(chain.blocks):
        given = (params[block.name], z, context)
        program, z = _applied(block, *given)
        _check_closed(block.name, program)
        check_real(f"the output of block `{block.name}`", z)
        one = _Seen(b, block.apply, program, abstracted((given, z)))
        first = next((other for other in seen if other.computes(one)), one)
        if first is one:
            seen.append(one)
            _check_derivatives(block, program, *given)
            one.is_steady = _same(program, _applied(block, *given)[0])
            one.is_apart = keeps_apart(*_differentiated(block, program, *given))
        firsts.append(first)
        _check_output(block.name, z, n)
    kinds = tuple(first.number for first in firsts)
    return Traced(z, kinds, tuple(first.is_steady for first in firsts), tuple(first.is_apart for first in firsts))


@dataclass
class _Seen:
    """A block with its program."""

    number: int
    apply: Callable[..., Any]
    program: Program
    shapes: Any
    is_steady: bool = True
    is_apart: bool = False

    def computes(self, other: "_Seen") -> bool:
        """What another does, for the same shapes."""
        if self.shapes != other.shapes:
            return False
        return self.apply == other.apply or self.text == other.text

    @functools.cached_property
    def text(self) -> Text:
        """What equal programs share."""
        return Text(self.program, [var.aval.weak_type for var in self.program.jaxpr.outvars])


def _check_closed(name: str, program: Program) -> None:
    """Refuse what a block takes from a transformation around it: its program stands for the chain, whoever asks."""
    for value in program.consts:
        if not is_concrete(value):
            raise ValueError(
                f"block `{name}` closes over a value of {shapes(value)} that `jax.jit`, `jax.vmap` or `jax.grad` "
                "traces around it: hand it over in `params`, in `x`, or as `context`."
            )


def _same(one: Program, two: Program) -> bool:
    """Whether two traces of one function are equal; functions of the host that it calls are new ones in each."""
    pairs = zip(one.consts, two.consts, strict=True)
    return str(one) == str(two) and all(raw_bytes(a) == raw_bytes(b) for a, b in pairs)


def runs_alone(block: Block, params: Any, z: Any, context: Any, count: int) -> bool:
    """Whether programs prove that a block that keeps samples apart gives `count` of them alone what the batch gives.

    Remembered for as long as the block lives. Cost: two traces.
    """
    return _runs_alone(block.apply, count, *abstracted((params, z, context)))


@remembered
def _runs_alone(apply: Callable[..., Any], count: int, treedef: Any, leaves: Any) -> bool:
    block, (params, z, context) = Block("", apply), of_shapes(treedef, leaves)
    few = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), z)
    try:
        (batch, axes), (fewer, _) = (
            _differentiated(block, traced(block, params, z, context)[0], params, z, context) for z in (z, few)
        )
    except MISFIT:
        return False
    is_each = all(atom.aval.shape[:1] == (count,) for atom in fewer.jaxpr.outvars)
    return is_each and answers_alone(batch, fewer, axes)


def _differentiated(block: Block, program: Program, params: Any, z: Any, context: Any) -> tuple[Program, list[Any]]:
    """The program, or that of its derivative where that has a rule of its own; for each input the axis of samples."""
    axes = [axis for axis, tree in ((None, params), (0, z), (None, context)) for _ in jax.tree.leaves(tree)]
    if not has_custom_rule(program):
        return program, axes

    def moved(params: Any, z: Any, context: Any, tangents: list[Any]) -> Any:
        inputs, rebuild = floating(z)
        return jax.jvp(lambda leaves: floating_leaves(block(params, rebuild(leaves), context)), (inputs,), (tangents,))

    tangents = list(filter(is_floating, jax.tree.leaves(z)))
    return jax.make_jaxpr(moved)(params, z, context, tangents), axes + [0] * len(tangents)


def _applied(block: Block, params: Any, z: Any, context: Any) -> tuple[Program, Any]:
    """The program of a block, and the shapes of what it returns."""
    try:
        return traced(block, params, z, context)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise Inapplicable(block.name, z, params, error) from error


def _check_output(name: str, out: Any, n: int) -> None:
    leading = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(out)}
    if leading != {n}:
        raise ValueError(
            f"block `{name}` must keep the {n} samples on the leading axis of everything it returns, got "
            f"{shapes(out)}: reshape its output, or move what is not per sample into `context`."
        )
    if not any(map(is_floating, jax.tree.leaves(out))):
        raise ValueError(
            f"block `{name}` returns no floating-point array, got {shapes(out)}, so nothing can be "
            "differentiated through it: join it with the block that makes floating-point activations."
        )


# ---- derivatives


def _check_derivatives(block: Block, program: Program, params: Any, z: Any, context: Any) -> None:
    """Trace both where its program does not prove that they are there."""
    if have_derivatives(program):
        return
    try:
        trace_derivatives(block, (params, z), (context,))
    except NO_DERIVATIVE as error:
        raise ValueError(_no_derivative(f"block `{block.name}`", error)) from error


def _no_derivative(what: str, error: Exception) -> str:
    """Which of the two derivatives that curvature needs there is not."""
    text = str(error)
    if "custom_vjp" in text:
        return (
            f"{what} has no forward derivative (`jax.custom_vjp` allows none), which curvature needs: define its "
            f"derivative by `jax.custom_jvp`, or leave it to jax. ({first_line(error)})"
        )
    return (
        f"{what} cannot be differentiated forward and in reverse, which curvature needs both: write a "
        "`lax.while_loop` as a `lax.scan` of fixed length, and a callback in JAX, or give it a `jax.custom_jvp`. "
        f"({first_line(error)})"
    )


# ---- the loss


def trace_loss(loss: Loss, z: Any, y: Any) -> bool:
    """Whether the program of a loss proves that it keeps the samples apart; remembered for as long as the loss lives.

    Raises:
        ValueError: It cannot be applied, returns no loss for each sample, or has no derivative.
    """
    return _traced_loss(loss, *abstracted((z, y)))


@remembered
def _traced_loss(loss: Loss, treedef: Any, leaves: Any) -> bool:
    z, y = of_shapes(treedef, leaves)
    n = jax.tree.leaves(z)[0].shape[0]
    try:
        program, out = traced(loss, z, y)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"`loss(z_B, y)` cannot be applied to the network's output {shapes(z)} and `y` of {shapes(y)}: make the "
            f"shapes fit. ({first_line(error)})"
        ) from error
    if getattr(out, "shape", None) != (n,):
        raise ValueError(
            f"`loss` must return one loss for each of the {n} samples, shape ({n},), got {shapes(out)}: return "
            "per-sample losses and leave the mean to localhessian."
        )

    def hessian(z: Activations, y: Any) -> Any:
        outputs, rebuild = floating(z)
        gradient, jvp = jax.linearize(jax.grad(lambda leaves: loss(rebuild(leaves), y).sum()), outputs)
        return gradient, jax.vmap(jvp)([leaf[None] for leaf in outputs])

    try:
        jax.eval_shape(hessian, z, y)
    except NO_DERIVATIVE as error:
        raise ValueError(_no_derivative("`loss`", error)) from error
    axes = [0] * len(jax.tree.leaves(z)) + [None] * len(jax.tree.leaves(y))
    return not has_custom_rule(program) and keeps_apart(program, axes)


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
