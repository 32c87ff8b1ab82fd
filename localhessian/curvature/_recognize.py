"""Is the loss Hessian that of a softmax, or diagonal? By products with it, sample by sample.

A softmax of whatever the loss makes of the outputs (a temperature, added constants, weights of the samples) is read off
two products: S e_j = -alpha p_j p away from j holds no cancellation, at any confidence. What is read is then compared
with S at random vectors: to the size of the sample's own S by a vector that is zero at the likeliest class, whose
product holds no cancellation either, and to the rounding of S by one without zeros.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._programs import compiled, floating_types
from localhessian._status import quietly
from localhessian._tree import floating, floating_leaves, is_concrete, sample_rows, to_device
from localhessian._types import Activations, Array, Loss
from localhessian.curvature._root import Kind, Root
from localhessian.linalg import eps_of

Product: TypeAlias = Callable[[list[Any]], list[Any]]


def loss_hessian(loss: Loss, z: Activations, y: Any) -> Any:
    """u -> S u on lists of floating-point leaves, linearized at z_B. Cost: one jvp of the loss's gradient."""
    outputs, rebuild = floating(z)
    return jax.linearize(jax.grad(lambda leaves: loss(rebuild(leaves), y).sum()), outputs)[1]


def candidates(z: Activations) -> list[Kind]:
    """What may be recognized for outputs of these shapes, the likeliest first."""
    outputs = floating_leaves(z)
    one_row_of_classes = len(outputs) == 1 and outputs[0].ndim >= 2 and outputs[0].shape[-1] > 1
    return [Kind.SOFTMAX, Kind.DIAGONAL] if one_row_of_classes else [Kind.DIAGONAL]


def recognized(kind: Kind, loss: Loss, z: Activations, y: Any, probe: list[Array]) -> tuple[Root, Any]:
    """The root if S is of that kind, and for each sample whether it is; under tracing too.

    With numbers at hand only products with S are a program, and the rest is NumPy's: all of it as one program takes
    three to ten times as long to compile.
    """
    if not is_concrete(z, y):
        return _in_program(kind, loss, z, y, probe)
    outputs, rebuild = floating(z)
    zeros = [np.zeros(leaf.shape, leaf.dtype) for leaf in outputs]
    at_zeros = rebuild(list(map(to_device, zeros)))
    hessian, undecided = (lambda u, at=at: jax.device_get(product(loss, at, y, u)[0]) for at in (z, at_zeros))
    eps = float(product(loss, at_zeros, y, probe)[1])
    with quietly():
        at, random = jax.device_get((outputs, probe))
        return _of_kind(kind, hessian, undecided, at, zeros, random, eps, np)


@compiled(static_argnums=0)
def product(loss: Loss, z: Activations, y: Any, u: list[Array]) -> tuple[list[Array], Array]:
    """S u, and the largest eps of the numbers that the loss computes with."""
    return loss_hessian(loss, z, y)(u), jnp.asarray(coarsest(loss, z, y), jnp.float32)


@compiled(static_argnums=(0, 1), once=True)
def _in_program(kind: Kind, loss: Loss, z: Activations, y: Any, probe: list[Array]) -> tuple[Root, Array]:
    outputs, rebuild = floating(z)
    # Or the compiler would compute on its own what a loss makes of zeros, for many classes in a quarter of a minute.
    zeros = jax.lax.optimization_barrier([leaf - leaf for leaf in probe])
    hessian, undecided = (loss_hessian(loss, at, y) for at in (z, rebuild(zeros)))
    return _of_kind(kind, hessian, undecided, outputs, zeros, probe, coarsest(loss, z, y), jnp)


def probe_like(outputs: list[Array]) -> list[Array]:
    """Random numbers of NumPy: no shape needs a program for them."""
    random = np.random.default_rng(1)
    return [to_device(random.standard_normal(leaf.shape), leaf.dtype) for leaf in outputs]


def _of_kind(
    kind: Kind,
    hessian: Product,
    undecided: Product,
    outputs: list[Any],
    zeros: list[Any],
    probe: list[Any],
    eps: float,
    xp: ModuleType,
) -> tuple[Root, Any]:
    """By S at the outputs and S at zeros, where all classes are as likely."""
    tolerance = 1e3 * eps if eps < 1e-5 else 16 * eps
    if kind is Kind.DIAGONAL:
        return _diagonal(hessian, outputs, probe, tolerance, xp)
    return _softmax(hessian, undecided, outputs[0], zeros[0], probe[0], tolerance, xp)


def _diagonal(
    hessian: Product, outputs: list[Any], probe: list[Any], tolerance: float, xp: ModuleType
) -> tuple[Root, Any]:
    diagonal = hessian([xp.ones_like(leaf) for leaf in outputs])
    root = Root([xp.sqrt(xp.maximum(leaf, 0)) for leaf in diagonal], Kind.DIAGONAL)
    (exact, ours, entries) = (sample_rows(leaves) for leaves in (hessian(probe), root.hessian(probe), diagonal))
    is_diagonal = _largest(ours - exact, xp) <= tolerance * _largest(exact, xp)
    is_convex = xp.min(entries, axis=1) >= -tolerance * _largest(entries, xp)
    return root, is_diagonal & is_convex


def _softmax(
    hessian: Product, undecided: Product, logits: Any, alike: Any, v: Any, tolerance: float, xp: ModuleType
) -> tuple[Root, Any]:
    # How large the terms are that cancel in S of a confident sample: what it is where all classes are as likely.
    terms = xp.nan_to_num(_read(undecided, alike, alike[..., :1], xp)[1])
    p, alpha = _read(hessian, logits, terms, xp)
    top = _at_largest(p, xp)
    root = Root([p, xp.sqrt(alpha) * xp.sqrt(p), top], Kind.SOFTMAX)
    beside = xp.where(top, 0, v)
    (exact,), (whole,) = hessian([beside]), hessian([v])
    (ours,), (all_of_ours,) = root.hessian([beside]), root.hessian([v])
    size: Callable[..., Any] = lambda leaf: xp.max(xp.abs(leaf), axis=-1)
    agrees = size(ours - exact) <= tolerance * size(exact)
    agrees &= size(all_of_ours - whole) <= tolerance * xp.maximum(alpha, terms)[..., 0] * size(v)
    return root, xp.all(agrees.reshape(len(v), -1), axis=1)


def _read(hessian: Product, logits: Any, terms: Any, xp: ModuleType) -> tuple[Any, Any]:
    """p and alpha (..., 1) of S = alpha (diag(p) - p p^T), from two of its columns away from the diagonal.

    Where only two classes are likely at all, p is known by alpha p_one p_two alone; `terms` is then alpha.
    """
    one = _at_largest(logits, xp)
    of_one = _column(hessian, one, logits.dtype, xp)  # alpha p_one p
    two = _at_largest(of_one, xp)
    of_two = _column(hessian, two, logits.dtype, xp)  # alpha p_two p
    three = _at_largest(xp.where(two, 0, of_one), xp)
    pick: Callable[..., Any] = lambda values, at: xp.sum(xp.where(at, values, 0), axis=-1, keepdims=True)
    both, first, second = pick(of_one, two), pick(of_one, three), pick(of_two, three)
    ratio: Callable[..., Any] = lambda a, b: xp.where((a > 0) & (b > 0), a / xp.where(b > 0, b, 1), 0)
    alone = xp.minimum(ratio(both, terms), 1)
    odds = xp.where(ratio(second, first) > 0, ratio(second, first), xp.where(alone > 0, alone, 1))
    to_one = xp.where(one, 1, of_one * ratio(odds, both))
    total = xp.sum(to_one, axis=-1, keepdims=True)
    return to_one / total, both * total * total / odds


def _column(hessian: Product, at: Any, dtype: Any, xp: ModuleType) -> Any:
    """-S e_j away from j, of every row at once."""
    (column,) = hessian([at.astype(dtype)])
    return xp.where(at, 0, -column)


def _at_largest(values: Any, xp: ModuleType) -> Any:
    classes = xp.arange(values.shape[-1]).reshape((1,) * (values.ndim - 1) + (-1,))
    return classes == xp.argmax(values, axis=-1, keepdims=True)


def _largest(rows: Any, xp: ModuleType) -> Any:
    return xp.max(xp.abs(rows), axis=1)


def coarsest(loss: Loss, z: Activations, y: Any) -> float:
    """The largest eps of the numbers that the loss computes with, whatever it is given."""
    types = [floating_leaves(z)[0].dtype, *floating_types(jax.make_jaxpr(loss)(z, y))]
    return max(eps_of(dtype) for dtype in types)
