"""Is a block the same for some samples alone as in their batch? By its values and by products, sample by sample."""

import dataclasses

import jax
import numpy as np

from localhessian._tree import floating_leaves, sample_rows, to_device
from localhessian._types import Activations, Array
from localhessian.linalg import SymmetricOperator, eps_of
from localhessian.network import MISFIT, ByInput, Place, Side, answer, by_sample, jacobian, meant


def answers_alike(side: Side, in_batch: Place, alone: Place, outputs: Activations) -> bool:
    """Whether a block gives the samples alone the outputs and the derivatives that it gives them in the batch.

    To rounding, each relative to its own sample; `outputs` is z_b of the whole batch.

    Cost: a forward pass and a jvp, of the samples and of the batch; the programs are those that back-matching and
    products with the samples take.
    """
    block, index = side.block, in_batch.index
    try:
        few = jax.eval_shape(block, alone.params, alone.z, alone.context)
    except MISFIT:
        return False
    if not all(leaf.shape[:1] == index.shape for leaf in jax.tree.leaves(few)):  # type: ignore[union-attr]
        return False
    wanted = sample_rows(jax.device_get(meant(outputs, index)))
    ours = floating_leaves(answer(block, alone.params, alone.z, alone.context))
    if not _near(sample_rows(jax.device_get(ours)), wanted):
        return False
    whole = dataclasses.replace(in_batch, index=None)
    inputs = floating_leaves(whole.z)
    by_input = jacobian(ByInput(block), whole)
    v = np.random.default_rng(0).standard_normal(by_input.size)
    moved = by_input.prepare().mv(to_device(v, by_input.dtype))
    rows = by_sample(v, inputs)[np.asarray(index)]
    of_alone = jacobian(side, alone)
    moved_alone = of_alone.mv(to_device(rows if of_alone.batch else rows[0], of_alone.dtype))
    return _near(np.atleast_2d(moved_alone), by_sample(moved, floating_leaves(outputs))[np.asarray(index)])


def multiply_alike(one: SymmetricOperator, other: SymmetricOperator) -> bool:
    """Whether two operators of as many samples agree on a random vector, each relative to its own sample."""
    shape = (one.size,) if one.batch is None else (one.batch, one.size)
    v = to_device(np.random.default_rng(0).standard_normal(shape), one.dtype)
    return _near(np.atleast_2d(one.mv(v)), np.atleast_2d(other.mv(v)))


def _near(ours: Array | np.ndarray, wanted: Array | np.ndarray) -> bool:
    """Rows that differ by rounding: not more, or some samples would pass for others."""
    if ours.shape != wanted.shape:
        return False
    eps = max(eps_of(rows.dtype) for rows in (ours, wanted))
    one, two = (np.asarray(rows).astype(np.float64) for rows in (ours, wanted))
    tolerance = 100 * eps if eps < 1e-5 else 4 * eps
    return bool(np.all(np.abs(one - two).max(1) <= tolerance * np.abs(two).max(1)))
