"""Is the loss Hessian that of a softmax, or diagonal? By products with it, sample by sample.

A softmax of whatever the loss makes of the outputs (a temperature, added constants, weights of the samples) is read off
two products: S e_j = -alpha p_j p away from j holds no cancellation, at any confidence. What is read is then compared
with S at random vectors: to the size of the sample's own S by a vector that is zero at the likeliest class, whose
product holds no cancellation either, and to the rounding of S by one without zeros.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._programs import compiled, floating_types
from localhessian._tree import floating, floating_leaves, ravel_samples, to_device
from localhessian._types import Activations, Array, Loss
from localhessian.curvature._root import Kind, Root
from localhessian.linalg import eps_of


def loss_hessian(loss: Loss, z: Activations, y: Any) -> Any:
    """u -> S u on lists of floating-point leaves, linearized at z_B. Cost: one jvp of the loss's gradient."""
    outputs, rebuild = floating(z)
    return jax.linearize(jax.grad(lambda leaves: loss(rebuild(leaves), y).sum()), outputs)[1]


def candidates(z: Activations) -> list[Kind]:
    """What may be recognized for outputs of these shapes, the likeliest first."""
    outputs = floating_leaves(z)
    one_row_of_classes = len(outputs) == 1 and outputs[0].ndim >= 2 and outputs[0].shape[-1] > 1
    return [Kind.SOFTMAX, Kind.DIAGONAL] if one_row_of_classes else [Kind.DIAGONAL]


@compiled(static_argnums=(0, 1), once=True)
def recognized(kind: Kind, loss: Loss, z: Activations, y: Any, probe: list[Array]) -> tuple[Root, Array]:
    """The root if S is of that kind, and for each sample whether it is."""
    eps = coarsest(loss, z, y)
    tolerance = 1e3 * eps if eps < 1e-5 else 16 * eps
    hessian, (outputs, rebuild) = loss_hessian(loss, z, y), floating(z)
    if kind is Kind.DIAGONAL:
        return _diagonal(hessian, outputs, probe, tolerance)
    # Or the compiler would compute on its own what a loss makes of zeros, for many classes in a quarter of a minute.
    # Not written down: `at_once` has a program for each step from what is.
    zeros = jax.lax.optimization_barrier([leaf - leaf for leaf in probe])
    undecided = loss_hessian(loss, rebuild(zeros), y)
    return _softmax(hessian, undecided, outputs, zeros, probe, tolerance)


def probe_like(outputs: list[Array]) -> list[Array]:
    """Random numbers of NumPy: no shape needs a program for them."""
    random = np.random.default_rng(1)
    return [to_device(random.standard_normal(leaf.shape), leaf.dtype) for leaf in outputs]


def _diagonal(
    hessian: Callable[..., Any], outputs: list[Array], probe: list[Array], tolerance: float
) -> tuple[Root, Array]:
    diagonal = hessian([jnp.ones_like(leaf) for leaf in outputs])
    root = Root([jnp.sqrt(jnp.maximum(leaf, 0)) for leaf in diagonal], Kind.DIAGONAL)
    (exact, ours, entries) = (ravel_samples(leaves)[0] for leaves in (hessian(probe), root.hessian(probe), diagonal))
    is_diagonal = _largest(ours - exact) <= tolerance * _largest(exact)
    is_convex = jnp.min(entries, axis=1) >= -tolerance * _largest(entries)
    return root, is_diagonal & is_convex


def _softmax(
    hessian: Callable[..., Any],
    undecided: Callable[..., Any],
    outputs: list[Array],
    zeros: list[Array],
    probe: list[Array],
    tolerance: float,
) -> tuple[Root, Array]:
    (logits,), (alike,), (v,) = outputs, zeros, probe
    # How large the terms are that cancel in S of a confident sample: what it is where all classes are as likely.
    terms = jnp.nan_to_num(_read(undecided, alike, alike[..., :1])[1])
    p, alpha = _read(hessian, logits, terms)
    top = _at_largest(p)
    root = Root([p, jnp.sqrt(alpha) * jnp.sqrt(p), top], Kind.SOFTMAX)
    beside = jnp.where(top, 0, v)
    (exact,), (whole,) = hessian([beside]), hessian([v])
    (ours,), (all_of_ours,) = root.hessian([beside]), root.hessian([v])
    size: Callable[..., Any] = lambda leaf: jnp.max(jnp.abs(leaf), axis=-1)
    agrees = size(ours - exact) <= tolerance * size(exact)
    agrees &= size(all_of_ours - whole) <= tolerance * jnp.maximum(alpha, terms)[..., 0] * size(v)
    return root, jnp.all(agrees.reshape(len(v), -1), axis=1)


def _read(hessian: Callable[..., Any], logits: Array, terms: Array) -> tuple[Array, Array]:
    """p and alpha (..., 1) of S = alpha (diag(p) - p p^T), from two of its columns away from the diagonal.

    Where only two classes are likely at all, p is known by alpha p_one p_two alone; `terms` is then alpha.
    """
    one = _at_largest(logits)
    of_one = _column(hessian, one, logits.dtype)  # alpha p_one p
    two = _at_largest(of_one)
    of_two = _column(hessian, two, logits.dtype)  # alpha p_two p
    three = _at_largest(jnp.where(two, 0, of_one))
    pick: Callable[..., Any] = lambda values, at: jnp.sum(jnp.where(at, values, 0), axis=-1, keepdims=True)
    both, first, second = pick(of_one, two), pick(of_one, three), pick(of_two, three)
    ratio: Callable[..., Any] = lambda a, b: jnp.where((a > 0) & (b > 0), a / jnp.where(b > 0, b, 1), 0)
    alone = jnp.minimum(ratio(both, terms), 1)
    odds = jnp.where(ratio(second, first) > 0, ratio(second, first), jnp.where(alone > 0, alone, 1))
    to_one = jnp.where(one, 1, of_one * ratio(odds, both))
    total = jnp.sum(to_one, axis=-1, keepdims=True)
    return to_one / total, both * total * total / odds


def _column(hessian: Callable[..., Any], at: Array, dtype: Any) -> Array:
    """-S e_j away from j, of every row at once."""
    (column,) = hessian([at.astype(dtype)])
    return jnp.where(at, 0, -column)


def _at_largest(values: Array) -> Array:
    return jax.nn.one_hot(jnp.argmax(values, axis=-1), values.shape[-1], dtype=bool)


def _largest(rows: Array) -> Array:
    return jnp.max(jnp.abs(rows), axis=1)


def coarsest(loss: Loss, z: Activations, y: Any) -> float:
    """The largest eps of the numbers that the loss computes with, whatever it is given."""
    types = [floating_leaves(z)[0].dtype, *floating_types(jax.make_jaxpr(loss)(z, y))]
    return max(eps_of(dtype) for dtype in types)
