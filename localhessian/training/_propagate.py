"""Back-matching propagation (Procedure 1): each block is asked to lower its own back-matching loss.

For b = B .. 1 two argmins, by the weights and by the input; the methods that are known differ in who solves them:

    back-propagation                 GradientStep(rate) by the weights, GradientStep(1.0) by the input: a step of SGD
    target propagation               GradientStep(rate) by the weights, LeastSquares or GaussNewton by the input: the
                                     target of the block below is what this block maps closest to its own target
    method of auxiliary coordinates  LeastSquares or LevenbergMarquardt by both: each block is fitted to its target;
                                     one sweep over the blocks, without the penalty that ties targets to outputs
    scale-amended SGD                ScaledGradient by both: a gradient step over a scalar in place of the Hessian

Sources: Zhang, Chen & Liu (2018); Meulemans et al., A theoretical framework for target propagation (2020);
Carreira-Perpinan & Wang, Distributed optimization of deeply nested systems (2014).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from localhessian._arguments import expect, expect_function, expect_key, short
from localhessian._programs import compiled_if_eager, full_precision
from localhessian._status import Status
from localhessian._tree import floating, floating_leaves, is_concrete, pytree
from localhessian._types import Activations, Array, Context, Key, Loss, Params, Scalar
from localhessian.linalg import eps_of
from localhessian.network import (
    ByInput,
    ByParams,
    Chain,
    Place,
    admit,
    answer,
    check_chain,
    check_params,
    expect_batch,
    run_chain,
    trace,
    validate_values,
)
from localhessian.training._layouts import each_block
from localhessian.training._problem import Problem, Step, norm, times, where
from localhessian.training._solvers import GradientStep, Solver

Solvers = Solver | Mapping[str, Solver] | Callable[[str], Solver]
"""One for all blocks, one for each name (of the others weights stay, and inputs are back-propagated), or a function."""


@pytree
class BlockInfo:
    """What happened in one block."""

    loss_before: Scalar
    """l_b(W_b^k, z_{b-1}^k)."""
    loss_after: Scalar
    """The same after the block's own step: l_b(W_b^{k+1}, z_{b-1}^k), but for arrays that other blocks use too."""
    step_norm: Scalar
    """The norm of the block's own step: ||W_b^{k+1} - W_b^k||, but for arrays that other blocks use too."""
    displacement_norm: Scalar
    """||delta_{b-1}||, over the batch; 0 for the first block."""
    weight_status: Array
    """A `localhessian.Status` code; REJECTED where the step was undone."""
    input_status: Array
    """The same for the input; where its step was undone a unit gradient step took its place."""


@pytree
class PropagateInfo:
    """What one step of back-matching propagation tells; `state` goes into the next call."""

    loss: Scalar
    """J at W^k."""
    blocks: dict[str, BlockInfo]
    """By block."""
    state: dict[str, Any]
    """Of the solvers, by block: (weight side, input side)."""

    @property
    def rejected(self) -> Array:
        """How many steps were undone."""
        codes = [code for info in self.blocks.values() for code in (info.weight_status, info.input_status)]
        return jnp.sum(jnp.stack(codes) == int(Status.REJECTED))


def propagate(
    chain: Chain,
    params: dict[str, Params],
    x: Activations,
    y: Any,
    loss: Loss,
    weight_solver: Solvers = GradientStep(0.1),  # noqa: B008  frozen
    input_solver: Solvers = GradientStep(1.0),  # noqa: B008
    context: Context = None,
    state: dict[str, Any] | None = None,
    *,
    key: Key | None = None,
) -> tuple[dict[str, Params], PropagateInfo]:
    """One step of block-coordinate back-matching propagation (Procedure 1).

    For b = B .. 1, with l_b carrying 1/n and n l_b for the input (docs/theory.md, 2):

        W_b^{k+1}       ~= argmin_W l_b(W, z_{b-1}^k)     by the weight solver, from W_b^k
        z_{b-1}^{k+1/2} ~= argmin_z l_b(W_b^k, z)         by the input solver, from z_{b-1}^k, with the old weights

    With `GradientStep(rate)` and `GradientStep(1.0)` this is a step of SGD, to rounding. Some blocks train by
    back-propagation and others not: give solvers by name. A trust rule undoes a step that is not finite or, of any
    solver but `GradientStep`, raises the back-matching loss: the weights stay, the input falls back to a unit gradient
    step, and the status says so.

    An array of the model that several blocks use (tied weights) moves by the sum of the steps of its uses, whatever
    their solvers, and all its uses stay equal: with gradient solvers that is SGD on the model; others solve each
    use by itself, as if the other uses stood still, and the trust rule judges each use's own step.

    Args:
        chain: The network.
        params: The parameters of each block by its name; a block without parameters may be left out.
        x: Inputs, samples on the leading axis.
        y: What the loss compares with.
        loss: Per-sample losses, shape `(n,)`.
        weight_solver: Of the parameters: a solver, a mapping from block names (the others keep their weights), or a
            function of the name.
        input_solver: Of the inputs, likewise (the others take a unit gradient step).
        context: Handed to every block that takes one.
        state: `info.state` of the step before; None to begin.
        key: Of solvers that use random vectors; default `jax.random.key(0)`.

    Returns:
        The new parameters, in the structure of `params`, and what happened. Works under `jax.jit`, in a loop of your
        own or in `jax.lax.scan` (begin with `lh.initial_state`).

    Raises:
        KeyError: A solver or parameters for a block that is not in the chain.
        TypeError: What is no solver.
        ValueError: A solver does not fit a block; whatever `lh.back_match` refuses (outside of `jax.jit`: also numbers
            that are not finite, and tied parameters that differ).

    Cost: one forward pass, and for each block its two solvers and two values of its loss.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: z * w), lh.Block("b", lambda w, z: z * w)])
        >>> params = {"a": jnp.array([1.0]), "b": jnp.array([2.0])}
        >>> x, y = jnp.array([[1.0]]), jnp.array([[1.0]])
        >>> new, info = lh.propagate(
        ...     chain, params, x, y, lambda z, y: 0.5 * ((z - y) ** 2).sum(1), lh.GradientStep(0.1))
        >>> print(new["a"], new["b"], info.loss)
        [0.8] [1.9] 0.5

    Source: Zhang, Chen & Liu (2018), Procedure 1.
    """
    check_chain(chain, params)
    expect_batch("propagate", x)
    expect_key(key)
    of_weight_side = _picked("weight_solver", chain, weight_solver, 0.0)
    of_input_side = _picked("input_solver", chain, input_solver, 1.0)
    _check_state(chain, state)
    key = jax.random.key(0) if key is None else key
    loss, context = admit(chain, params, x, y, loss, context)
    of_blocks = {name: params.get(name, ()) for name in chain.names}
    activations = run_chain(chain, of_blocks, x, context)
    losses = answer(loss, activations[-1], y)
    if is_concrete(params, x, y, context, activations, losses):
        validate_values(chain, of_blocks, y, context, activations, losses, loss)
        chain.check_tied(of_blocks)
    target: Any = y
    steps, blocks, states = {}, {}, {}
    kinds = trace(chain, of_blocks, x, context).run_as(chain)
    for b in range(len(chain), 0, -1):
        block, kind, z = chain.blocks[b - 1], kinds[b - 1], activations[b - 1]
        of_params = of_blocks[block.name]
        of_block = loss if b == len(chain) else None
        before = None if state is None else state[block.name]
        keys = jax.random.split(jax.random.fold_in(key, b))
        place = Place(of_params, z, context)
        of_weights, of_inputs = (Problem(place, target, side=of(kind), loss=of_block) for of in (ByParams, ByInput))
        solver, own = of_weight_side[block.name], None if before is None else before[0]
        weights = _solve(block.name, of_weights, solver, own, keys[0])
        steps[block.name] = floating(of_params)[1](weights.step)
        inputs = _unmoved(0.0)
        if b > 1 and floating_leaves(z):
            solver, own = of_input_side[block.name], None if before is None else before[1]
            inputs = _solve(block.name, of_inputs, solver, own, keys[1])
            target = floating(jax.tree.map(jnp.zeros_like, z))[1](inputs.step)
        sizes, statuses = (weights.size, inputs.size), (weights.status, inputs.status)
        blocks[block.name] = BlockInfo(weights.before, weights.after, *sizes, *statuses)
        states[block.name] = (weights.state, inputs.state)
    summed = chain.sum_tied(steps)
    # In the structure that came in, so that a scan over steps carries it.
    new = each_block(params, lambda name, of_block: _moved(of_block, summed[name]))
    return new, PropagateInfo(losses.mean(), {name: blocks[name] for name in chain.names}, states)


def initial_state(
    chain: Chain,
    params: dict[str, Params],
    weight_solver: Solvers = GradientStep(0.1),  # noqa: B008  frozen
    input_solver: Solvers = GradientStep(1.0),  # noqa: B008
) -> dict[str, Any]:
    """What `lh.propagate` begins with where `state` is None: for loops whose state must keep its structure.

    Args:
        chain: The network.
        params: The parameters of each block by its name.
        weight_solver: As in `lh.propagate`.
        input_solver: As in `lh.propagate`; its state must not depend on the shape of the input (no solver's here does).

    Returns:
        The states of both solvers, (weight side, input side), by the name of the block. Works under `jax.jit`.

    Raises:
        KeyError: A solver or parameters for a block that is not in the chain.
        TypeError: What is no solver.

    Cost: no product; the memory that the solvers keep.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: z * w), lh.Block("b", lambda w, z: z * w)])
        >>> params = {"a": jnp.array([1.0]), "b": jnp.array([2.0])}
        >>> print(lh.initial_state(chain, params, lh.GradientStep(0.1)))
        {'a': ((), ()), 'b': ((), ())}
    """
    check_chain(chain, params)
    check_params("params", params, chain)
    of_weight_side = _picked("weight_solver", chain, weight_solver, 0.0)
    of_input_side = _picked("input_solver", chain, input_solver, 1.0)
    states = {}
    for b, block in enumerate(chain.blocks):
        of_block = params.get(block.name, ())
        stand_in = jnp.zeros((), jnp.result_type(*floating_leaves(params) or [jnp.zeros(())]))
        place = Place(of_block, stand_in, None)
        of_weights, of_inputs = (Problem(place, None, side=side(block), loss=None) for side in (ByParams, ByInput))
        weights, inputs = of_weight_side[block.name], of_input_side[block.name]
        states[block.name] = (
            weights.init(of_weights) if of_weights.start else (),
            inputs.init(of_inputs) if b else (),
        )
    return states


class _Solved(NamedTuple):
    step: Step
    state: Any
    """The solver's next one."""
    status: Array
    before: Scalar
    """phi there, and after the step."""
    after: Scalar
    size: Scalar
    """The norm of the step."""


@full_precision()
def _solve(name: str, problem: Problem, solver: Solver, state: Any, key: Key) -> _Solved:
    """A trusted step, and what came of it."""
    if not problem.start:
        return _unmoved(problem.before())
    first = solver.init(problem)
    if state is not None and not _alike(state, first):
        raise ValueError(
            f"`state` holds for block `{name}` what another solver left: pass the `info.state` of "
            "the step before, by the same solvers, or None to begin."
        )
    state = first if state is None else state
    return _judged(problem, solver.solve(problem, state, key), state, bool(solver.trusted))


def _unmoved(value: Any) -> _Solved:
    """Of a side without variables."""
    return _Solved([], (), jnp.zeros((), jnp.int32), value, value, jnp.zeros(()))


@compiled_if_eager(static_argnums=3)
def _judged(problem: Problem, found: tuple[Step, Any, Array], state: Any, is_trusted: bool) -> _Solved:
    """The step if it is finite and, unless it is trusted, does not raise phi."""
    step, next_state, status = found
    before, after = problem.before(), problem.objective(step)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in step]))
    rounding = 100 * eps_of(step[0].dtype) * jnp.abs(before)
    kept = finite if is_trusted else finite & (after <= before + rounding)
    # In place of a step that is refused, the parameters stay and the target takes the step of back-propagation, which
    # a trusted solver took already.
    steps_back = problem.side.per_sample and not is_trusted
    instead = times(-1.0, problem.gradient()) if steps_back else list(map(jnp.zeros_like, step))
    step = where(kept, step, instead)
    next_state = where(finite, next_state, state)
    status = jnp.where(kept, status, int(Status.REJECTED)).astype(jnp.int32)
    return _Solved(step, next_state, status, before, jnp.where(kept, after, before), norm(step))


def _alike(one: Any, two: Any) -> bool:
    structures: list[Any] = [jax.tree.structure(tree) for tree in (one, two)]
    return bool(structures[0] == structures[1])


def _moved(params: Params, steps: Params) -> Params:
    leaves, rebuild = floating(params)
    return rebuild(_plus(leaves, floating_leaves(steps)))


@compiled_if_eager()
def _plus(leaves: list[Array], steps: list[Array]) -> list[Array]:
    return [leaf + step.astype(leaf.dtype) for leaf, step in zip(leaves, steps, strict=True)]


def _picked(name: str, chain: Chain, solvers: Solvers, rate: float) -> dict[str, Solver]:
    """The solver of each block; KeyError for one of no block of the chain, TypeError for what is no solver."""
    if isinstance(solvers, Mapping):
        for block in solvers:
            chain.index(block)
        found = {block: solvers.get(block, GradientStep(rate)) for block in chain.names}
    elif hasattr(solvers, "solve") or not callable(solvers):
        found = dict.fromkeys(chain.names, cast(Solver, solvers))
    else:
        expect_function(name, solvers, "a solver, or a function of the name of a block that returns one", takes=1)
        found = {block: solvers(block) for block in chain.names}
    for block, solver in found.items():
        if isinstance(solver, type) or not hasattr(solver, "solve"):
            raise TypeError(
                f"`{name}`: what steps block `{block}` must be a solver, as `lh.GradientStep(0.1)`, or a mapping from "
                f"block names to solvers, or a function of the name that returns one, got {short(solver)}."
            )
    return found


def _check_state(chain: Chain, state: Any) -> None:
    wanted = "the `info.state` of the step before, or None to begin"
    expect("state", state, (Mapping, type(None)), wanted)
    if state is None:
        return
    pairs = all(isinstance(state.get(name), tuple | list) and len(state[name]) == 2 for name in chain.names)
    if not pairs or set(state) != set(chain.names):
        raise ValueError(f"`state` must be {wanted}, with a pair for each block ({', '.join(chain.names)}).")
