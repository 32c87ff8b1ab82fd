"""Every eigenvalue inside a compiled program: the blocks lie where the layout says, and the program fills in numbers.

Blocks share no variable, so one product of the whole map with a column of every block gives that column of all of them:
as many products as the longest block has columns (rows, by the transpose, where these are fewer) give every block.
Source: Curtis, Powell & Reid (1974), for sparse Jacobians.
"""

import itertools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._status import Status
from localhessian._types import Array, Key
from localhessian.linalg.krylov import TRACED, unit_rows
from localhessian.linalg.operators import EXACT, HIGHEST, LinearMap, SymmetricOperator, eps_of, run_quickly
from localhessian.linalg.spectra import Spectrum, packed, working_dtype
from localhessian.linalg.structure._dependence import UNKNOWN
from localhessian.linalg.structure._in_program import singular_values
from localhessian.linalg.structure._layout import Group, Layout


def spectrum_of(layout: Layout, prepared: LinearMap, symmetric: SymmetricOperator, key: Key, method: str) -> Spectrum:
    """The whole spectrum of R with this layout, confirmed by a random vector; H is `symmetric` as the operator has it.

    Returns:
        Singular values from the blocks in the precision of the products. NON_FINITE where a product is not finite;
        NOT_CONFIRMED, incomplete and with infinite error bounds, where R v or H v differ from the operator's own.
    """
    dtype = working_dtype(prepared.dtype)
    blocks, finite = _blocks(layout, prepared, dtype)
    apart = _differs(layout, blocks, prepared, symmetric, key)
    decomposed = [_singular_values(group, block) for group, block in zip(layout.groups, blocks, strict=True)]
    sigma, counts = _ascending(layout, [values.ravel() for values in decomposed], dtype)
    sigma = jnp.where(finite[:, None], sigma, jnp.nan)
    good = finite & ~apart
    rho = EXACT * eps_of(prepared.dtype) * jnp.nanmax(sigma, axis=-1, keepdims=True, initial=0)
    rho = jnp.where(jnp.isnan(sigma), jnp.nan, jnp.where(apart[:, None], jnp.inf, rho))
    status = jnp.where(finite, jnp.where(apart, int(Status.NOT_CONFIRMED), 0), int(Status.NON_FINITE))
    of_maps: Callable[[Array], Array] = (lambda part: part[0]) if layout.batch is None else (lambda part: part)
    return packed(
        *map(of_maps, (sigma, counts, rho)),
        of_factor=True,
        status=of_maps(status),
        complete=of_maps(good),
        matvecs=layout.products,
        size=layout.in_size,
        dtype=prepared.dtype,
        method=method,
    )


def _ascending(layout: Layout, values: list[Array], dtype: jnp.dtype) -> tuple[Array, Array]:
    """Of every map its singular values and their multiplicities; NaN, of empty slots, comes last."""
    numbers, counts = layout.slots()
    sigma = jnp.concatenate([*values, jnp.asarray([0, jnp.nan], dtype)])[numbers]
    order = jnp.argsort(sigma, axis=-1)
    return jnp.take_along_axis(sigma, order, axis=-1), jnp.take_along_axis(jnp.asarray(counts), order, axis=-1)


def _blocks(layout: Layout, prepared: LinearMap, dtype: jnp.dtype) -> tuple[list[Array], Array]:
    """R_j of every group, (blocks, m, p), and which maps have finite products."""
    by_columns, maps = layout.by_columns, layout.batch or 1
    multiplied = prepared if by_columns else prepared.T
    # All blocks in one vector: which unit vector each entry of it belongs to.
    turn = np.full(maps * multiplied.size, UNKNOWN, np.int32)
    for group in layout.groups:
        entries = (group.columns if by_columns else group.rows)[:, 0]
        turn[entries] = np.arange(entries.shape[1])
    units = (jnp.asarray(turn)[None] == jnp.arange(layout.products, dtype=np.int32)[:, None]).astype(prepared.dtype)
    lead = () if layout.batch is None else (layout.batch,)
    found = run_quickly(Partial(jax.vmap(multiplied.product)), units.reshape(-1, *lead, multiplied.size))
    finite = jnp.all(jnp.isfinite(found).reshape(-1, maps, found.shape[-1]), axis=(0, 2))
    # LAPACK is not to meet NaN; the spectra of such maps are refused as a whole.
    found = jnp.where(jnp.isfinite(found), found, 0).reshape(len(found), -1).astype(dtype)
    return [_block(group, found, by_columns) for group in layout.groups], finite


def _block(group: Group, found: Array, by_columns: bool) -> Array:
    m, p = group.shape
    if by_columns:
        return jnp.moveaxis(_taken(found[:p], group.rows[:, 0]), 0, -1)
    return jnp.moveaxis(_taken(found[:m], group.columns[:, 0]), 0, 1)


def _taken(array: Array, index: np.ndarray) -> Array:
    """array[..., index]; what is no more than another order of axes is not gathered, which takes ten times as long."""
    start = int(index.min())
    for axes in itertools.permutations(range(index.ndim)):
        turned = index.transpose(axes)
        if np.array_equal(turned.ravel(), np.arange(start, start + index.size)):
            lead = array.ndim - 1
            whole = array[..., start : start + index.size].reshape(*array.shape[:-1], *turned.shape)
            return jnp.transpose(whole, (*range(lead), *(lead + place for place in np.argsort(axes))))
    return array[..., index]


def _singular_values(group: Group, blocks: Array) -> Array:
    """(blocks, order), in any order."""
    m, p = group.shape
    if group.order == 1:
        return cast(Array, TRACED.lengths(blocks.reshape(len(blocks), -1))[:, None])
    if group.kronecker is None or m > p:
        return singular_values(blocks)
    rows = _taken(blocks, group.kronecker)  # (blocks, m, channels, inputs), each row of rank one
    size = jnp.max(jnp.abs(rows), axis=-1)
    largest = jnp.argmax(size, axis=-1, keepdims=True)
    inputs = unit_rows(jnp.take_along_axis(rows, largest[..., None], axis=-2)[..., 0, :], TRACED)
    return singular_values(inputs, jnp.einsum("bmci,bmi->bmc", rows, inputs, precision=HIGHEST))


def _differs(layout: Layout, blocks: list[Array], prepared: LinearMap, symmetric: SymmetricOperator, key: Key) -> Array:
    """Of each map, whether R v or H v of a random v is not what the blocks make of it."""
    maps, dtype = layout.batch or 1, working_dtype(prepared.dtype)
    shape = (layout.in_size,) if layout.batch is None else (layout.batch, layout.in_size)
    v = jax.random.normal(key, shape, dtype).astype(prepared.dtype)
    image = _multiplied(layout, blocks, v.astype(dtype), transposed=False)
    back = _multiplied(layout, blocks, image, transposed=True)
    apart = jnp.zeros(maps, bool)
    for ours, theirs in ((image, prepared.product(v)), (back, symmetric.product(v))):
        own = theirs.reshape(maps, -1).astype(dtype)
        error = TRACED.lengths(ours.reshape(maps, -1) - own)
        # What the walk says is exact: a difference above rounding means that it was mistaken.
        apart |= ~(error <= eps_of(prepared.dtype) ** 0.5 * TRACED.lengths(own))
    return apart


def _multiplied(layout: Layout, blocks: list[Array], vectors: Array, transposed: bool) -> Array:
    """R v, or R^T u, of vectors of all maps, by the blocks."""
    size, equation = (layout.in_size, "bmp,bcm->bcp") if transposed else (layout.out_size, "bmp,bcp->bcm")
    out = jnp.zeros((layout.batch or 1) * size, vectors.dtype)
    for group, block in zip(layout.groups, blocks, strict=True):
        source, target = (group.rows, group.columns)[:: 1 if transposed else -1]
        out = out.at[target].set(jnp.einsum(equation, block, vectors.ravel()[source], precision=HIGHEST))
    return out
