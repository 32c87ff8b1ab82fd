"""Proof from programs alone that a block gives some samples what it gives them in their batch.

The program for the batch and the one for fewer samples are walked side by side. Every value of the one is that of the
other with fewer entries along the axis of the samples, or the same: equations are equal but for the number of samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from localhessian._programs import Equation, Program, entered, is_variable
from localhessian._tree import raw_bytes
from localhessian.network._apart import Axis, Unknown, axis_of, expect


def answers_alone(batch: Program, fewer: Program, axes: Sequence[Axis]) -> bool:
    """Whether the second program gives fewer samples what the first one, which keeps them apart, gives among all.

    True is proof; False says nothing. Programs and axes are as `keeps_apart` takes them.
    """
    try:
        return all(axis in (0, None) for axis in _together(batch, fewer, axes))
    except Unknown:
        return False


def _together(batch: Program, fewer: Program, axes: Sequence[Axis]) -> list[Axis]:
    """For each output the axis of its samples."""
    one, two = batch.jaxpr, fewer.jaxpr
    expect(len(one.eqns) == len(two.eqns) and len(batch.consts) == len(fewer.consts))
    expect(all(map(_same, batch.consts, fewer.consts)))
    axis = dict(zip(one.constvars, [None] * len(one.constvars), strict=True)) | dict(zip(one.invars, axes, strict=True))
    twin = dict(zip([*one.constvars, *one.invars], [*two.constvars, *two.invars], strict=True))

    def read(atoms: Sequence[Any], others: Sequence[Any]) -> list[Axis]:
        expect(len(atoms) == len(others))
        for atom, other in zip(atoms, others, strict=True):
            if is_variable(atom):
                expect(twin[atom] is other)
            else:
                expect(not is_variable(other) and _same(atom.val, other.val))
        return [axis[atom] if is_variable(atom) else None for atom in atoms]

    for eqn, other in zip(one.eqns, two.eqns, strict=True):
        expect(eqn.primitive is other.primitive and len(eqn.outvars) == len(other.outvars))
        results = _results(eqn, other, read(eqn.invars, other.invars))
        for atom, to, along in zip(eqn.outvars, other.outvars, results, strict=True):
            expect(_differs_along(along, atom.aval, to.aval))
            axis[atom], twin[atom] = along, to
    return read(one.outvars, two.outvars)


def _results(eqn: Any, other: Any, given: list[Axis]) -> list[Axis]:
    inner, of_other = entered(eqn), entered(other)
    if inner is not None and of_other is not None:
        return _together(inner, of_other, given)
    if any(axis is not None for axis in given):
        along: Axis = axis_of(eqn, given)
        expect(_settings_agree(eqn, other))
    elif eqn.outvars[0].aval.shape == other.outvars[0].aval.shape:
        along = None
        expect(all(_same_setting(eqn.params[name], other.params[name]) for name in eqn.params))
    else:
        along = _repeated_along(eqn, other)
    return [along] * len(eqn.outvars)


def _repeated_along(eqn: Any, other: Any) -> int:
    """Along which axis what is the same for all samples is repeated for each of them."""
    expect(eqn.primitive.name == "broadcast_in_dim" and _settings_agree(eqn, other))
    sizes = zip(eqn.outvars[0].aval.shape, other.outvars[0].aval.shape, strict=True)
    axes = [axis for axis, (n, few) in enumerate(sizes) if n != few]
    expect(len(axes) == 1 and axes[0] not in eqn.params["broadcast_dimensions"])
    return axes[0]


def _settings_agree(eqn: Equation, other: Equation) -> bool:
    """But for sizes of arrays, which the shapes of the results tell."""
    return eqn.params.keys() == other.params.keys() and all(
        name in _SIZES or _same_setting(value, other.params[name]) for name, value in eqn.params.items()
    )


_SIZES = ("shape", "new_sizes", "limit_indices", "slice_sizes")
"""Settings with a size for each axis: the rules ask for the axis of the samples whole, all else shows in the result."""


def _same_setting(one: Any, other: Any) -> bool:
    same = one is other or one == other
    return same if isinstance(same, bool) else False


def _same(one: Any, other: Any) -> bool:
    """Constants that have the same bytes."""
    if one is other:
        return True
    return np.shape(one) == np.shape(other) and raw_bytes(np.asarray(one)) == raw_bytes(np.asarray(other))


def _differs_along(axis: Axis, one: Any, other: Any) -> bool:
    """Whether two results are of one kind but for their length along an axis."""
    if one.dtype != other.dtype or one.weak_type != other.weak_type or len(one.shape) != len(other.shape):
        return False
    return all(n == few or i == axis for i, (n, few) in enumerate(zip(one.shape, other.shape, strict=True)))
