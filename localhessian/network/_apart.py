"""Proof from a program alone that it keeps samples apart: their axis is followed from its inputs to its outputs.

Every rule says on which axis of its result the samples of an operation's operands lie, each entry made of that sample
alone; what has no rule proves nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from localhessian._programs import Equation, Program, entered, evaluate

Axis = int | None
"""Of the samples; None: the same for all of them."""


class Unknown(Exception):
    """No rule says where the samples go."""


def expect(holds: bool) -> None:
    """Raise `Unknown` where what a proof rests on does not hold."""
    if not holds:
        raise Unknown


def keeps_apart(program: Program, axes: Sequence[Axis]) -> bool:
    """Whether each entry of the outputs along their leading axis depends on that sample alone.

    True is proof; False says nothing. With rules of differentiation of its own, which may mix what a block or a loss
    does not, the program is that of its derivative; `axes` tell where each input holds the samples.
    """
    try:
        return all(axis in (0, None) for axis in _run(program, axes))
    except Unknown:
        return False


def _run(program: Program, axes: Sequence[Axis]) -> list[Axis]:
    return evaluate(program, axes, _results, constant=lambda _: None)  # constants are the same for all


def _results(eqn: Equation, given: list[Axis]) -> list[Axis]:
    if all(axis is None for axis in given):
        return [None] * len(eqn.outvars)
    inner = entered(eqn)
    return [axis_of(eqn, given)] * len(eqn.outvars) if inner is None else _run(inner, given)


def axis_of(eqn: Equation, given: list[Axis]) -> Axis:
    """The axis on which results of an equation, which is no call, hold the samples; `Unknown` if no rule says so."""
    rule = _RULES.get(eqn.primitive.name)
    if rule is None:
        raise Unknown
    return rule(eqn, given)


def _one(given: list[Axis]) -> int:
    """The axis of all operands that have one."""
    found = {axis for axis in given if axis is not None}
    expect(len(found) == 1)
    return found.pop()


def _only_first(given: list[Axis]) -> int:
    """The axis of the first operand, where it is the only one that has one."""
    if given[0] is None or any(axis is not None for axis in given[1:]):
        raise Unknown
    return given[0]


def _untouched(axis: int, moved: Sequence[int]) -> int:
    expect(axis not in moved)
    return axis


def _along(name: str) -> Callable[[Any, list[Axis]], Axis]:
    """Something is done along one axis, or some."""

    def rule(eqn: Any, given: list[Axis]) -> Axis:
        moved = eqn.params[name]
        return _untouched(_one(given), moved if isinstance(moved, tuple) else [moved])

    return rule


def _without(name: str) -> Callable[[Any, list[Axis]], Axis]:
    """One axis goes, or some."""

    def rule(eqn: Any, given: list[Axis]) -> Axis:
        gone = eqn.params[name]
        gone = gone if isinstance(gone, tuple) else [gone]
        axis = _untouched(_only_first(given), gone)
        return axis - sum(bool(other < axis) for other in gone)

    return rule


def _stacked(eqn: Any, given: list[Axis]) -> Axis:
    axis = _one(given)
    return cast(Axis, axis + (eqn.params["axis"] <= axis))


def _tiled(eqn: Any, given: list[Axis]) -> Axis:
    axis = _only_first(given)
    expect(eqn.params["reps"][axis] == 1)
    return axis


def _broadcast(eqn: Any, given: list[Axis]) -> Axis:
    axis = _only_first(given)
    to = eqn.params["broadcast_dimensions"][axis]
    return _of_length(eqn, axis, to)


def _of_length(eqn: Any, axis: int, to: int) -> int:
    """The new place of the axis, as long as it was."""
    expect(eqn.invars[0].aval.shape[axis] == eqn.outvars[0].aval.shape[to])
    return to


def _reshaped(eqn: Any, given: list[Axis]) -> Axis:
    """The axis whose length and number of entries before it stay."""
    axis, old, new = _only_first(given), eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    places = [i for i in range(len(new)) if new[i] == old[axis] and math.prod(new[:i]) == math.prod(old[:axis])]
    expect(eqn.params.get("dimensions") is None and bool(places) and old[axis] != 1)
    return places[0]


def _transposed(eqn: Any, given: list[Axis]) -> Axis:
    return list(eqn.params["permutation"]).index(_only_first(given))


def _sliced(eqn: Any, given: list[Axis]) -> Axis:
    axis = _only_first(given)
    return _of_length(eqn, axis, axis)  # all of it


def _padded(eqn: Any, given: list[Axis]) -> Axis:
    axis = _only_first(given)
    expect(eqn.params["padding_config"][axis] == (0, 0, 0))
    return axis


def _multiplied(eqn: Any, given: list[Axis]) -> Axis:
    """Batch axes first, then those of the left and of the right operand that stay."""
    contracted, batched = eqn.params["dimension_numbers"]
    left, right = given
    sides = [side for side, axis in enumerate(given) if axis is not None]
    places = {tuple(batched[side]).index(given[side]) for side in sides if given[side] in batched[side]}
    if len(sides) == 2 or places:
        expect(len(places) == 1 and all(given[side] in batched[side] for side in sides))
        return places.pop()
    side, axis = sides[0], cast(int, left if right is None else right)
    kept = [[i for i in range(len(eqn.invars[s].aval.shape)) if i not in (*contracted[s], *batched[s])] for s in (0, 1)]
    expect(axis in kept[side])
    return len(batched[0]) + side * len(kept[0]) + kept[side].index(axis)


def _convolved(eqn: Any, given: list[Axis]) -> Axis:
    numbers = eqn.params["dimension_numbers"]
    expect(_only_first(given) == numbers.lhs_spec[0] and eqn.params["batch_group_count"] == 1)
    return cast(Axis, numbers.out_spec[0])


def _windowed(eqn: Any, given: list[Axis]) -> Axis:
    axis = _only_first(given)
    widths = {eqn.params[name][axis] for name in ("window_dimensions", "window_strides", "base_dilation")}
    expect(widths == {1} and tuple(eqn.params["padding"][axis]) == (0, 0))
    return axis


def _gathered(eqn: Any, given: list[Axis]) -> Axis:
    """Windows of the first operand at the indices of the second, whose axes but the last are axes of the result."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    of_windows = numbers.offset_dims
    of_indices = [i for i in range(len(eqn.outvars[0].aval.shape)) if i not in of_windows]
    operand, indices = given
    if operand is None:
        if indices is None or indices >= len(of_indices):
            raise Unknown
        return of_indices[indices]
    if operand in numbers.operand_batching_dims:
        pair = numbers.start_indices_batching_dims[tuple(numbers.operand_batching_dims).index(operand)]
        expect(indices in (None, pair))
        return cast(Axis, of_indices[pair])
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    is_whole = sizes[operand] == eqn.invars[0].aval.shape[operand] and operand not in (*gone, *numbers.start_index_map)
    expect(indices is None and is_whole)
    return cast(Axis, of_windows[[i for i in range(len(sizes)) if i not in gone].index(operand)])


ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos cosh
digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic
lt max min mul name ne neg nextafter not or pow reduce_precision rem round rsqrt select_n sharding_constraint sign
sin sinh sqrt square stop_gradient sub tan tanh xor
"""
"""Names of operations each entry of whose result is made of those of the operands at its place."""
_REDUCTIONS = "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin"
_RULES: dict[str, Callable[[Any, list[Axis]], Axis]] = {
    **dict.fromkeys(ELEMENTWISE.split(), lambda _, given: _one(given)),
    **dict.fromkeys(_REDUCTIONS.split(), _without("axes")),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "split"), _along("axis")),
    **dict.fromkeys(("concatenate", "sort"), _along("dimension")),
    "rev": _along("dimensions"),
    "stack": _stacked,
    "unstack": _without("axis"),
    "tile": _tiled,
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _windowed),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": _without("dimensions"),
    "transpose": _transposed,
    "slice": _sliced,
    "pad": _padded,
    "dot_general": _multiplied,
    "conv_general_dilated": _convolved,
    "gather": _gathered,
}
