"""The figures of several spectra: under transformations by one program for all that are alike."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._status import Status
from localhessian._tree import abstracted, is_concrete
from localhessian._types import Array
from localhessian.analysis._figures import Figures, figures, surveyed_figures
from localhessian.analysis._survey import Examined
from localhessian.linalg import Density, Spectrum, condition_number

_SLOTS = ("eigenvalues", "multiplicities", "residual_norms", "singular_values", "singular_residual_norms")
"""Fields of a spectrum whose last axis is that of its values."""


def figures_together(found: Sequence[Examined]) -> Figures:
    """With an axis of spectra, the last one.

    Under transformations XLA compiles some seventy kernels for the figures of one spectrum, so those that differ only
    in how many values they have are filled up with empty slots, and go through one program.
    """
    if is_concrete(list(found)):
        return jax.tree.map(lambda *each: np.stack([np.asarray(one) for one in each], axis=-1), *map(_alone, found))
    groups = defaultdict(list)
    for place, (whole, rest) in enumerate(found):
        groups[_kind(whole, rest)].append(place)
    parts = [_alike([found[place] for place in places]) for places in groups.values()]
    order = np.argsort([place for places in groups.values() for place in places])
    return jax.tree.map(lambda *each: jnp.concatenate(each, axis=-1)[..., order], *parts)


def _alone(one: Examined) -> Figures:
    found, rest = one
    kappa = condition_number(found)
    return _honest(figures(found, kappa) if rest is None else surveyed_figures(found, kappa, rest))


def _honest(told: Figures) -> Figures:
    """A condition number that was not sought is no figure with a good status."""
    xp: Any = np if is_concrete(told) else jnp
    unknown = xp.isnan(told.kappa_plus) & (told.status == int(Status.CONVERGED))
    spent = xp.full_like(told.status, int(Status.BUDGET_SPENT))
    return dataclasses.replace(told, status=xp.where(unknown, spent, told.status))


def _kind(found: Spectrum, rest: Density | None) -> Any:
    """What spectra that can be stacked share: all but their values' number and, without a quadrature, their order."""
    slots: Any = {name: jax.ShapeDtypeStruct(values.shape[:-1], values.dtype) for name, values in _slots(found)}
    size = 0 if rest is None else found.size
    return abstracted((dataclasses.replace(found, method="", vectors=None, size=size, **slots), rest))


def _alike(found: Sequence[Examined]) -> Figures:
    """Of one kind."""
    most = max(whole.eigenvalues.shape[-1] for whole, _ in found)
    sizes = jnp.asarray([whole.size for whole, _ in found])
    filled = [(_filled(whole, most), rest) for whole, rest in found]

    def one(size: Array, *leaves: Array) -> Figures:
        whole, rest = jax.tree.unflatten(jax.tree.structure(filled[0]), leaves)
        return _alone((dataclasses.replace(whole, size=size) if rest is None else whole, rest))

    stacked = [jnp.stack(each) for each in zip(*map(jax.tree.leaves, filled), strict=True)]
    return jax.vmap(one, out_axes=-1)(sizes, *stacked)


def _filled(found: Spectrum, most: int) -> Spectrum:
    """With empty slots behind its values."""

    def fill(slots: Array) -> Array:
        empty = jnp.nan if jnp.issubdtype(slots.dtype, jnp.floating) else 0
        widths = [(0, 0)] * (slots.ndim - 1) + [(0, most - slots.shape[-1])]
        return jnp.pad(slots, widths, constant_values=empty)

    slots: Any = {name: fill(values) for name, values in _slots(found)}
    return dataclasses.replace(found, vectors=None, **slots)


def _slots(found: Spectrum) -> list[tuple[str, Array]]:
    """Those fields that are there."""
    fields = [(name, getattr(found, name)) for name in _SLOTS]
    return [(name, values) for name, values in fields if values is not None]
