"""The loss Hessian S = d^2 (sum of the losses) / dz_B^2 as what multiplies, and its root as what is decomposed.

With numbers at hand S is recognized, or taken apart, in float64 on the host, sample by sample, from the loss of the
whole batch. In a traced program it is recognized on made-up numbers when it is traced, and by the true numbers when it
runs: where a sample's S is another, products take the Hessian of the loss itself, and the root is NaN.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._mesh import samples_like
from localhessian._programs import at_once, compiled, eigh
from localhessian._tree import (
    floating,
    floating_leaves,
    is_concrete,
    pytree,
    ravel_samples,
    sample_rows,
    size,
    to_device,
)
from localhessian._types import Activations, Array, Loss
from localhessian.curvature._recognize import candidates, coarsest, loss_hessian, probe_like, product, recognized
from localhessian.curvature._root import Kind, Root, at_least_single, multiply
from localhessian.linalg import eps_of
from localhessian.network import loss_couples_samples

MAX_OUTPUTS = 1024
"""Outputs of one sample above which an unrecognized S_i is not written out: samples * MAX_OUTPUTS**2 numbers are."""
MAX_WIDE = 2**25
"""Outputs of a batch above which they are not copied to float64."""


@pytree
class Curvature:
    """The loss Hessian at the outputs of the samples meant."""

    root: Root | None
    """L with S = L L^T where S is positive semi-definite; None where it is not, or too large, or unknown."""
    product: Partial | None
    """u -> S u on lists of leaves; None where that is L L^T u."""

    @property
    def hessian(self) -> Partial:
        """u -> S u, however it is known."""
        return Partial(Root.hessian, self.root) if self.product is None else self.product


def curvature(loss: Loss, z: Activations, y: Any, index: Array | None = None) -> Curvature:
    """S of the samples `index` (no sample twice; None for all) in their batch.

    Cost: a few products with S; where it is not recognized, one for each output of a sample.
    """
    z = jax.tree.map(at_least_single, z)
    if not is_concrete(z, y, index):
        return _traced(loss, z, y, index)
    with at_once():
        return samples_like(_known(loss, z, y, index), floating_leaves(z)[0])


# ---- with numbers at hand


def _known(loss: Loss, z: Activations, y: Any, index: Array | None) -> Curvature:
    dtype = jnp.result_type(*floating_leaves(z))
    chosen = slice(None) if index is None else np.asarray(index)
    tried = []
    with _widely(z):
        wide, wide_y = _wide(z), _wide(y)
        probe = probe_like(floating_leaves(wide))
        for kind in candidates(wide):
            root, agrees = recognized(kind, loss, wide, wide_y, probe)
            tried.append((root, np.asarray(agrees)[chosen]))
            if tried[-1][1].all():
                return Curvature(_narrow(root, chosen, dtype), None)
        is_small = size(floating_leaves(wide)) <= MAX_OUTPUTS * floating_leaves(wide)[0].shape[0]
        if is_small and not bool(loss_couples_samples(loss, wide, wide_y)):
            return _by_matrices(loss, wide, wide_y, chosen, dtype, tried)
    return Curvature(None, Partial(_product, _linearized(loss, z, y), index, floating_leaves(z)))


def _by_matrices(
    loss: Loss, z: Activations, y: Any, chosen: Any, dtype: Any, tried: list[tuple[Root, np.ndarray]]
) -> Curvature:
    """One matrix for each sample: that of the kind it agrees with, else what an eigendecomposition gives."""
    matrices = _columns(lambda u: product(loss, z, y, u)[0], z)[chosen]
    matrices = (matrices + matrices.swapaxes(1, 2)) / 2
    values, vectors = eigh(matrices)
    floor = 100 * coarsest(loss, z, y) * values.shape[1] * np.abs(values).max(1) + 10 * _rounding(loss, z, y)[chosen]
    roots = vectors * np.sqrt(np.where(values > floor[:, None], values, 0.0))[:, None, :]
    is_convex = values[:, 0] >= -floor
    for root, agrees in tried:
        if agrees.any():
            exact, here = _columns(lambda u, root=root: _times_root(root, u), z)[chosen], agrees[:, None, None]
            roots = np.where(here, exact, roots)
            matrices = np.where(here, exact @ exact.swapaxes(1, 2), matrices)
            is_convex |= agrees
    if is_convex.all():
        return Curvature(Root([to_device(roots, dtype)], Kind.GENERAL), None)
    return Curvature(None, Partial(multiply, to_device(matrices, dtype)))


def _columns(product: Any, z: Activations) -> np.ndarray:
    """The matrix of each sample, (n, c, c), of a product that does not mix them."""
    rows, unravel = ravel_samples(floating_leaves(z))
    units = np.eye(rows.shape[1])
    columns = [product(unravel(to_device(np.broadcast_to(unit, rows.shape), rows.dtype))) for unit in units]
    return np.stack([sample_rows(jax.device_get(column)) for column in columns], axis=-1)


def _rounding(loss: Loss, z: Activations, y: Any) -> np.ndarray:
    """How far S of each sample moves with the last digits of its outputs."""
    outputs, rebuild = floating(z)
    probe = probe_like(outputs)
    nudged = rebuild([leaf * (1 + 4 * eps_of(leaf.dtype)) for leaf in outputs])
    pushed, here = (sample_rows(jax.device_get(product(loss, at, y, probe)[0])) for at in (nudged, z))
    return cast(np.ndarray, np.abs(pushed - here).max(1))


@compiled
def _times_root(root: Root, u: list[Array]) -> list[Array]:
    return root.mv(u)


@contextlib.contextmanager
def _widely(z: Activations) -> Iterator[None]:
    """Arithmetic in float64, unless the outputs are too many."""
    if size(z) > MAX_WIDE:
        yield
        return
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def _wide(tree: Any) -> Any:
    """In float64, where that is at hand."""
    widest = jnp.result_type(float)

    def widened(leaf: Any) -> Any:
        is_float = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        dtype = jnp.promote_types(leaf.dtype, widest) if is_float else None
        return leaf if dtype is None or leaf.dtype == dtype else to_device(leaf, dtype)

    return jax.tree.map(widened, tree)


def _narrow(root: Root, chosen: Any, dtype: Any) -> Root:
    """Of the samples chosen, in the precision that products have."""
    rows = [np.asarray(leaf)[chosen] for leaf in root.data]
    return Root([to_device(leaf, leaf.dtype if leaf.dtype == bool else dtype) for leaf in rows], root.kind)


# ---- under tracing


def _traced(loss: Loss, z: Activations, y: Any, index: Array | None) -> Curvature:
    kind, outputs, moved = _kind(loss, z, y), floating_leaves(z), _linearized(loss, z, y)
    product = Partial(_product, moved, index, outputs)
    if kind is Kind.GENERAL:
        return Curvature(None, product)
    root, agrees = recognized(kind, loss, z, y, probe_like(outputs))
    if index is not None:
        root, agrees = jax.tree.map(lambda leaf: leaf[index], (root, agrees))
    data = [leaf if leaf.dtype == bool else _where(agrees, leaf, jnp.nan) for leaf in root.data]
    return Curvature(Root(data, kind), Partial(_trusted, root, agrees, product))


def _kind(loss: Loss, z: Activations, y: Any) -> Kind:
    """What S is for made-up outputs and labels: what is found depends on the function and the shapes only."""
    with at_once(), _widely(z):
        for kind in candidates(z):
            if all(_is_of(kind, loss, *_made_up((z, y), draw)) for draw in range(3)):
                return kind
    return Kind.GENERAL


def _is_of(kind: Kind, loss: Loss, z: Activations, y: Any) -> bool:
    root, agrees = recognized(kind, loss, z, y, probe_like(floating_leaves(z)))
    return bool(np.asarray(agrees).all()) and any(bool(np.asarray(leaf).any()) for leaf in root.data[-1:])


def _made_up(tree: Any, draw: int) -> Any:
    """Irregular numbers in the place of all leaves: small outputs and large ones, labels 0 and 1 and between."""
    random = np.random.default_rng(draw)
    z, y = tree

    def made(leaf: Any, is_output: bool) -> Any:
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.floating) and (is_output or draw == 0):
            small, large = random.uniform(0.1, 0.9, shape), 4 * random.standard_normal(shape)
            return to_device(large if draw else small, dtype)
        return to_device(random.integers(0, 2, shape), dtype)

    return _wide(jax.tree.map(lambda leaf: made(leaf, True), z)), _wide(jax.tree.map(lambda leaf: made(leaf, False), y))


def _product(moved: Partial, index: Array | None, outputs: list[Array], u: list[Array]) -> list[Array]:
    """S u of the samples meant; symmetric also where the loss's own derivatives are only up to rounding."""
    whole = [at_least_single(leaf) for leaf in u]
    if index is not None:
        whole = [jnp.zeros_like(leaf).at[index].set(few) for leaf, few in zip(outputs, whole, strict=True)]
    (back,) = jax.linear_transpose(moved, outputs)(whole)
    curved = [(one + two) / 2 for one, two in zip(moved(whole), back, strict=True)]
    return curved if index is None else [leaf[index] for leaf in curved]


def _trusted(root: Root, agrees: Array, product: Partial, u: list[Array]) -> list[Array]:
    """S u by the root of each sample that has it, else by the Hessian of the loss."""
    pairs = zip(root.hessian(u), product(u), strict=True)
    return [_where(agrees, ours, exact) for ours, exact in pairs]


def _where(agrees: Array, one: Array, other: Any) -> Array:
    return jnp.where(agrees.reshape(agrees.shape + (1,) * (one.ndim - 1)), one, other)


@compiled(static_argnums=0)
def _linearized(loss: Loss, z: Activations, y: Any) -> Partial:
    return cast(Partial, loss_hessian(loss, z, y))
