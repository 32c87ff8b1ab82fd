"""The loss Hessian S = d^2 (sum of the losses) / dz_B^2 and a factor L with S = L L^T, for the last block.

S is recognized, not looked up: a probe on made-up outputs finds whether it is that of a softmax cross-entropy,
S_i = alpha (diag(p) - p p^T) with L = sqrt(alpha) (diag(sqrt p) - p sqrt(p)^T), or diagonal (any loss that is a sum
over outputs: squared error, logistic). Both factors are accurate to rounding where an eigendecomposition of S would
leave sqrt(eps). Any other S is factored numerically, per sample, in float64 on the host.
"""

import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._memory import remembered
from localhessian._tree import floating, is_concrete, pytree, ravel_samples, static
from localhessian._types import Activations, Array, Loss

MAX_OUTPUTS = 1024
"""Outputs of one sample above which an unrecognized S_i is not factored: n * MAX_OUTPUTS**2 numbers are stored."""


class Kind(enum.Enum):
    """What the loss Hessian was recognized as."""

    SOFTMAX = "softmax cross-entropy"
    DIAGONAL = "diagonal"
    GENERAL = "general"


@pytree
class LossFactor:
    """L with S = L L^T at given outputs, acting on the floating-point leaves of z_B (a list of arrays)."""

    data: list[Array]
    """SOFTMAX: p and sqrt(alpha); DIAGONAL: sqrt(s) for each leaf; GENERAL: one matrix for each sample."""
    kind: Kind = static()

    def transpose_mv(self, outputs: list[Array]) -> list[Array]:
        """L^T u."""
        return self._apply(outputs, transpose=True)

    def mv(self, outputs: list[Array]) -> list[Array]:
        """L u."""
        return self._apply(outputs, transpose=False)

    def _apply(self, outputs: list[Array], transpose: bool) -> list[Array]:
        outputs = [_at_least_single(leaf) for leaf in outputs]
        if self.kind is Kind.DIAGONAL:
            return [root * leaf for root, leaf in zip(self.data, outputs, strict=True)]
        if self.kind is Kind.SOFTMAX:
            return [_softmax_factor(self.data[0], self.data[1], outputs[0], transpose)]
        rows, unravel = ravel_samples(outputs)
        product = "nij,ni->nj" if transpose else "nij,nj->ni"
        return unravel(jnp.einsum(product, self.data[0], rows, precision=jax.lax.Precision.HIGHEST))


def _softmax_factor(p: Array, weight: Array, u: Array, transpose: bool) -> Array:
    root = jnp.sqrt(p)
    if transpose:  # L^T u = sqrt(alpha) sqrt(p) (u - <p, u>)
        return weight * root * (u - jnp.sum(p * u, axis=-1, keepdims=True))
    return weight * (root * u - p * jnp.sum(root * u, axis=-1, keepdims=True))


def loss_hessian(loss: Loss, z: Activations, y: Any):
    """u -> S u on lists of floating-point leaves, linearized at z_B. Cost: one jvp of the loss's gradient."""
    outputs, rebuild = floating(z)
    return jax.linearize(jax.grad(lambda leaves: loss(rebuild(leaves), y).sum()), outputs)[1]


def loss_factor(loss: Loss, z: Activations, y: Any) -> LossFactor | None:
    """L with S = L L^T; None where S is not positive semi-definite, or unrecognized and too large or traced.

    In float32 at least: the rounding of narrower numbers would let anything pass for anything.
    """
    z = jax.tree.map(_at_least_single, z)
    kind = _recognize(loss, z, y)
    if kind is not Kind.GENERAL:
        factor, agrees = _recognized_factor(kind, loss, z, y, _probe(floating(z)[0]))
        if not is_concrete(z, y) or bool(agrees):
            return factor
    return _numerical_factor(loss, z, y) if is_concrete(z, y) else None


@jax.jit(static_argnums=(0, 1))
def _recognized_factor(kind: Kind, loss: Loss, z: Activations, y: Any, probe: list[Array]) -> tuple[LossFactor, Array]:
    """The factor if S is of that kind, and whether it is."""
    hessian = loss_hessian(loss, z, y)
    outputs, _ = floating(z)
    if kind is Kind.DIAGONAL:
        diagonal = hessian([jnp.ones_like(leaf) for leaf in outputs])
        factor = LossFactor([jnp.sqrt(leaf) for leaf in diagonal], kind)  # NaN where negative: not semi-definite
    else:
        p = jax.nn.softmax(outputs[0], axis=-1)
        factor = LossFactor([p, jnp.sqrt(_softmax_weight(hessian, p))], kind)
    return factor, _agrees(factor, hessian, probe)


def _softmax_weight(hessian, p: Array) -> Array:
    """alpha of S = alpha (diag(p) - p p^T), from the diagonal entry at the most probable class."""
    at = jax.nn.one_hot(jnp.argmax(p, axis=-1), p.shape[-1], dtype=p.dtype)
    rest = jnp.sum(p * (1 - at), axis=-1, keepdims=True)  # 1 - p_max without cancellation
    base = jnp.sum(p * at, axis=-1, keepdims=True) * rest
    # The column of S is alpha p_max (e - p): its entries off the maximum hold no cancellation.
    column = hessian([at])[0]
    entry = -jnp.sum(column * (1 - at), axis=-1, keepdims=True)
    return jnp.where(base > 0, entry / jnp.where(base > 0, base, 1), 0)


def _recognize(loss: Loss, z: Activations, y: Any) -> Kind:
    leaves, treedef = jax.tree.flatten((z, y))
    abstract = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    if is_concrete(z, y):
        return _recognize_shapes(loss, treedef, abstract)
    with jax.ensure_compile_time_eval():
        return _recognize_shapes(loss, treedef, abstract)


@remembered
def _recognize_shapes(loss: Loss, treedef, abstract) -> Kind:
    """Probe the loss on made-up outputs and labels: what is found depends on the function and the shapes only."""
    z, y = jax.tree.unflatten(treedef, [_made_up(*one) for one in abstract])
    for kind in _candidates(z):
        factor, agrees = _recognized_factor(kind, loss, z, y, _probe(floating(z)[0]))
        if bool(agrees) and any(bool(np.any(np.asarray(leaf) != 0)) for leaf in factor.data):
            return kind
    return Kind.GENERAL


def _candidates(z: Activations) -> list[Kind]:
    outputs = floating(z)[0]
    one_row_of_classes = len(outputs) == 1 and outputs[0].ndim >= 2 and outputs[0].shape[-1] > 1
    return [Kind.SOFTMAX, Kind.DIAGONAL] if one_row_of_classes else [Kind.DIAGONAL]


def _made_up(shape, dtype) -> Array:
    """Random numbers of NumPy, here and for the probe: no shape needs a program for them."""
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, shape), dtype)
    return jnp.ones(shape, dtype) if dtype == jnp.bool_ else jnp.zeros(shape, dtype)


def _probe(outputs: list[Array]) -> list[Array]:
    random = np.random.default_rng(1)
    return [jnp.asarray(random.standard_normal(leaf.shape), leaf.dtype) for leaf in outputs]


def _agrees(factor: LossFactor, hessian: Callable, probe: list[Array]) -> Array:
    """Whether L L^T v = S v for a random v, to the accuracy that S itself has (relative to its largest sample)."""
    exact = ravel_samples(hessian(probe))[0]
    ours = ravel_samples(factor.mv(factor.transpose_mv(probe)))[0]
    return jnp.max(jnp.abs(ours - exact)) <= 1e3 * jnp.finfo(exact.dtype).eps * jnp.max(jnp.abs(exact))


def _numerical_factor(loss: Loss, z: Activations, y: Any) -> LossFactor | None:
    """S_i^(1/2) by eigendecomposition in float64; directions below 100 eps c lambda_max of a sample count as null."""
    outputs, _ = floating(z)
    rows, _ = ravel_samples(outputs)
    n, c = rows.shape
    if c > MAX_OUTPUTS:
        return None
    with jax.enable_x64(True):
        wide, wide_y = jax.tree.map(_widen, (z, y))
        _, unravel = ravel_samples(floating(wide)[0])
        hessian = jax.jit(lambda u: ravel_samples(loss_hessian(loss, wide, wide_y)(unravel(u)))[0])
        columns = [np.asarray(hessian(jnp.broadcast_to(jnp.eye(c)[j], (n, c)))) for j in range(c)]
    matrices = np.stack(columns, axis=-1)
    values, vectors = np.linalg.eigh((matrices + matrices.swapaxes(1, 2)) / 2)
    floor = 100 * np.finfo(np.float64).eps * c * np.abs(values).max(axis=1, keepdims=True)
    if np.any(values < -floor):
        return None
    roots = np.sqrt(np.where(values > floor, values, 0.0))
    factor = LossFactor([jnp.asarray((vectors * roots[:, None, :]).astype(rows.dtype))], Kind.GENERAL)
    agrees = _agrees(factor, loss_hessian(loss, z, y), _probe(outputs))
    return factor if bool(agrees) else None  # a loss that couples samples has no S_i


def _at_least_single(leaf: Array) -> Array:
    narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
    return leaf.astype(jnp.float32) if narrow else leaf


def _widen(leaf: Array) -> Array:
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
