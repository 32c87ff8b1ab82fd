"""One spectrum out of those of the blocks of a matrix."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._status import Status
from localhessian.linalg.krylov import Krylov
from localhessian.linalg.operators import EXACT, eps_of
from localhessian.linalg.spectra import Spectrum, packed
from localhessian.linalg.structure._unit import Part

Row = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Singular values ascending, multiplicities, and error bounds, of one map of a batch."""


def whole(parts: Sequence[Part], size: int, dtype: jnp.dtype, batch: int | None, method: str) -> Spectrum:
    """The whole spectrum from the whole spectra of the blocks."""
    rows = []
    for b in range(batch or 1):
        mine = [part for part in parts if part.batch == b]
        sigma = np.concatenate([np.zeros(0), *(part.singular_values for part in mine)])
        copies = [np.full(len(part.singular_values), part.copies) for part in mine]
        rho = np.full(len(sigma), EXACT * eps_of(dtype) * np.max(sigma, initial=0))
        rows.append(_with_zeros(*_nonzero(sigma, np.concatenate([np.zeros(0, np.int64), *copies]), rho), size))
    lead = () if batch is None else (batch,)
    return _spectrum(rows, size, dtype, lead, method, np.zeros(lead), np.ones(lead, bool))


def ends(
    found: Spectrum, blocks: Sequence[tuple[int, int]], size: int, batch: int | None, settings: Krylov, method: str
) -> Spectrum:
    """The ends of the whole spectrum from those that `settings` found of the blocks, as a batch.

    `blocks` tells how many copies of each there are, and to which map of a batch it belongs.
    """
    sigma, rho, status, complete = (
        np.asarray(part)
        for part in (found.singular_values, found.singular_residual_norms, found.status, found.complete)
    )
    copies = np.array([number for number, _ in blocks])[:, None] * np.ones(sigma.shape, np.int64)
    low, high = (0 if settings.which == end else settings.k for end in ("largest", "smallest"))
    rows, codes, all_there, norms = [], [], [], []
    for b in range(batch or 1):
        mine = np.array([block == b for _, block in blocks])
        row, every = _nonzero(sigma[mine], copies[mine], rho[mine]), bool(complete[mine].all())
        if every:
            row = _with_zeros(*row, size)
        elif len(row[0]) > low + high:
            # Beyond as many as each block was asked for, some block may hide values in between.
            row = tuple(np.concatenate([part[:low], part[len(part) - high :]]) for part in row)  # type: ignore[assignment]
        if not len(row[0]):
            row = np.zeros(1), np.ones(1, np.int64), np.zeros(1)
        rows.append(row)
        codes.append(_joint_status(status[mine], every or len(row[0]) >= low + high))
        all_there.append(every)
        norms.append(np.max(np.asarray(found.norm)[mine]))
    lead = () if batch is None else (batch,)
    flags = (np.reshape(codes, lead), np.reshape(all_there, lead))
    return dataclasses.replace(
        _spectrum(rows, size, found.dtype, lead, method, *flags),
        matvecs=found.matvecs,
        krylov_steps=found.krylov_steps,
        # The Krylov space of all starts as one vector lies within the sum of the blocks' spaces.
        start_size=len(blocks) * found.start_size,
        ends=settings.which,
        norm=jax.device_put(np.reshape(norms, lead)),
    )


def _nonzero(sigma: np.ndarray, copies: np.ndarray, rho: np.ndarray) -> Row:
    """Ascending; NaN is none."""
    there = sigma > 0
    order = np.argsort(sigma[there])
    return sigma[there][order], copies[there][order], rho[there][order]


def _with_zeros(sigma: np.ndarray, copies: np.ndarray, rho: np.ndarray, size: int) -> Row:
    """All zeros in one slot; variables that nothing uses are zeros too."""
    zeros = size - int(copies.sum())
    if not zeros:
        return sigma, copies, rho
    bound = rho[:1] if len(rho) else np.zeros(1)
    return np.concatenate([[0.0], sigma]), np.concatenate([[zeros], copies]), np.concatenate([bound, rho])


def _joint_status(codes: np.ndarray, has_enough: bool) -> int:
    """One status for all blocks; one that has fewer values than asked for does no harm where others have enough."""
    refused = codes[(codes != Status.BUDGET_SPENT) & (codes != Status.INVARIANT_SUBSPACE)]
    if np.max(refused, initial=0):
        return int(np.max(refused))
    if np.any(codes == Status.BUDGET_SPENT):
        return int(Status.BUDGET_SPENT)
    return int(Status.CONVERGED if has_enough else Status.INVARIANT_SUBSPACE)


def _spectrum(
    rows: list[Row],
    size: int,
    dtype: jnp.dtype,
    lead: tuple[int, ...],
    method: str,
    status: np.ndarray,
    complete: np.ndarray,
) -> Spectrum:
    slots = max(len(sigma) for sigma, _, _ in rows)
    empty = (np.nan, 0, np.nan)
    sigma, copies, rho = (
        np.reshape([np.pad(row[i], (0, slots - len(row[i])), constant_values=empty[i]) for row in rows], (*lead, slots))
        for i in range(3)
    )
    # Shapes follow the data (how many values are zero, or equal), so nothing here may compile.
    record: dict[str, Any] = {"size": size, "dtype": dtype, "method": method, "matvecs": 1}
    return packed(sigma, copies, rho, of_factor=True, status=status, complete=complete, **record)
