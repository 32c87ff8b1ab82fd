"""The two drivers of a recurrence: step by step on the host, or a whole run in a compiled program."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from localhessian._blas import threads_that_pay
from localhessian._mesh import is_elsewhere
from localhessian.linalg.krylov._plan import ROWS, Plan
from localhessian.linalg.krylov._recurrence import State
from localhessian.linalg.operators import Operator, in_loop, repeat


def runs_whole(operator: Operator) -> bool:
    """Whether an iteration on numbers is one compiled program, vectors and all: on GPUs and TPUs, and over processes.

    On a CPU the host drives it, whose memory is that of its devices: convolutions in compiled loops are slow there.
    """
    return operator.in_programs and (jax.default_backend() != "cpu" or is_elsewhere(operator))


def on_the_host(operator: Operator) -> contextlib.AbstractContextManager[None]:
    """With as many threads of BLAS as pay for vectors of this length; products of the user's own have all there are."""
    if not operator.in_programs:
        return contextlib.nullcontext()
    factor = operator.factor
    return threads_that_pay((operator.batch or 1) * max(operator.size, 0 if factor is None else factor.out_size))


def drive(
    step: Callable[..., Any],
    restart: Callable[..., Any],
    settled: Callable[..., Any],
    state: State,
    plan: Plan,
    show: Callable[[int], None],
) -> tuple[State, State, bool]:
    """Steps on the host, until every wanted value is settled, the space is exhausted or the budget spent.

    A full basis is restarted, `settled` (which of the problems are) asked at intervals, `show` told the steps made.

    Returns:
        The state, that before the first restart (whose small arrays are kept, not its bases), and whether the run was
        interrupted.

    Raises:
        KeyboardInterrupt: It came before there was anything to keep, or in a restart, which rewrites the basis.
    """
    # Where both ends of a space that fits are asked for, the whole of it is worth more than a few products less.
    due, worth_seeing_whole = 1, plan.whole and (plan.which == "both" or plan.order <= ROWS)
    # Those settled before they exhausted their space: that is not their answer alone.
    first, ready = None, state.settled
    for made in range(1, plan.steps + 1):
        if state.row + plan.block > plan.size:
            first = first or state
            state = restart(state)
        try:
            state = step(state)
            show(made)
            if not state.live.any() or not state.finite.any() or (made == 2 and (state.skew > plan.skewed).all()):
                break
            if not worth_seeing_whole and made >= due:
                live, there = state.live.any(axis=1), settled(state)
                ready = ready | (live & there)
                if made >= plan.least and (there | ~live).all():
                    break
                # Asking costs the cube of the rows: a long basis is asked after every sixteenth of it.
                steps = state.row // plan.block
                due = made + max(1, min(steps // 8, max(4, steps // 16)))
        except KeyboardInterrupt:
            if not state.made:
                raise
            # What half of a step wrote lies beyond the rows in use.
            state.filled[:, state.row :] = False
            return state, first or state, True
    return dataclasses.replace(state, settled=state.settled | ready), first or state, False


def run_compiled(
    step: Callable[..., Any], restart: Callable[..., Any], state: State, plan: Plan
) -> tuple[State, State]:
    """The steps of the plan inside a compiled program, in whole cycles; loops end when every problem is done.

    A restart tells that, so it ends a cycle instead of beginning the next. Cycles are of one length, so that a step
    stands in the program twice; where none divides what the budget leaves, a few products (below half a cycle)
    are not spent.

    Returns:
        The state, and that before the first restart.
    """
    first = min(plan.steps, plan.size // plan.block)
    state = unrestarted = repeat(step, state, first)
    if plan.steps == first:
        return state, unrestarted
    left, fewest = plan.steps - first, -(-(plan.steps - first) // ((plan.size - plan.keep) // plan.block))
    cycles = min(range(fewest, min(2 * fewest, left) + 1), key=lambda count: left % count)
    state = jax.lax.while_loop(
        lambda state: (state.made < first + left // cycles * cycles) & jnp.any(state.live),
        in_loop(lambda state: restart(repeat(step, state, left // cycles, few=0))),
        restart(state),
    )
    return state, unrestarted
