"""Cumulative distributions from Jacobi matrices, with bounds that no measure of the same moments escapes.

N steps of Lanczos know the moments 0 .. 2N of the start vector's spectral measure. The matrices of order N + 1 that
continue the Jacobi matrix by *any* last diagonal element a are Gauss-Radau rules with these moments; and any two
measures G, F with these moments differ by little at every point x (Chebyshev, Markov, Stieltjes):

    |G(x) - F(x)| <= c(x) = 1 / sum_{i=0..N} p_i(x)^2,      p_i the orthonormal polynomials.

c is large inside the bulk, where N steps cannot resolve eigenvalues, and vanishes in the gaps between resolved ones. So
a few rules G_m, with elements a_m that spread their nodes evenly, bracket the true distribution F:

    max_m G_m(x) - c(x)  <=  F(x)  <=  min_m G_m(x) + c(x),      both made monotone, within [0, 1].

After a breakdown all rules are F itself, and c = 0. Source: N. I. Akhiezer, The Classical Moment Problem (1965), ch. 2.

Of a factor the measure lies evenly on plus and minus the singular values, and is compared with even measures alone.
Its share within [-x, x] is what any of them has there to within c+(x) = 1 / max(sum over even i, sum over odd i of
p_i(x)^2), at most twice c(x) and half of that next to 0: the most that a measure of lambda = sigma^2 on [0, inf) with
these moments has at x^2. Source: M. G. Krein and A. A. Nudelman, The Markov Moment Problem (1977), ch. 5.
"""

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._programs import eigh, svd
from localhessian.linalg.operators import eps_of

RULES = 8
"""Radau rules for each start: with more the bracket shrinks from at most 2 c(x) towards c(x)."""


def bracket(diagonal: Any, off: Any, x: Any, xp: ModuleType) -> tuple[Any, Any]:
    """Bounds of the cumulative distribution of unit start vectors at the points x, `(s, E)`, in any order.

    Of Jacobi matrices `(p, s, N)`: the last element of `off` couples to a further row, and zeros decouple what follows.

    Returns:
        Lower and upper bounds `(p, s, E)`.
    """
    own, other = _squares(diagonal, off, x, xp)
    return _between(*radau_rules(diagonal, off, xp), x, _bounded(own + other, diagonal.dtype, xp), xp)


def bracket_within(off: Any, x: Any, xp: ModuleType) -> tuple[Any, Any]:
    """The same of the share within [-x, x], x >= 0, of a measure that lies evenly on both sides: diagonals are zero."""
    nodes, weights = even_rules(off, xp)
    half = nodes.shape[-1] // 2
    nodes, weights = nodes[..., half:], 2 * weights[..., half:]
    own, other = _squares(xp.zeros_like(off), off, x, xp)
    return _between(nodes, weights, x, _bounded(xp.maximum(own, other), off.dtype, xp), xp)


def _between(nodes: Any, weights: Any, x: Any, slack: Any, xp: ModuleType) -> tuple[Any, Any]:
    """Monotone bounds `(p, s, E)` from rules, nodes ascending, and how far from them the truth may be."""
    order = xp.argsort(x, axis=-1)
    x, slack = xp.take_along_axis(x, order, -1), xp.take_along_axis(slack, order[None], -1)
    shares = _shares(nodes, weights, x, xp)
    lower = xp.clip(xp.max(shares, axis=-2) - slack, 0, 1)
    upper = xp.clip(xp.min(shares, axis=-2) + slack, 0, 1)
    if xp is np:
        lower = np.maximum.accumulate(lower, axis=-1)
        upper = np.minimum.accumulate(upper[..., ::-1], axis=-1)[..., ::-1]
    else:
        lower = jax.lax.cummax(lower, lower.ndim - 1)
        upper = jax.lax.cummin(upper, upper.ndim - 1, reverse=True)
    back = xp.argsort(order, axis=-1)[None]
    return xp.take_along_axis(lower, back, -1), xp.take_along_axis(upper, back, -1)


def _shares(nodes: Any, weights: Any, x: Any, xp: ModuleType) -> Any:
    """The weight of the nodes up to each x, `(p, s, RULES, E)`."""
    total = xp.cumsum(xp.concatenate([xp.zeros_like(weights[..., :1]), weights], axis=-1), axis=-1)
    x = xp.broadcast_to(x[None, :, None, :], (*nodes.shape[:-1], x.shape[-1]))
    places: Any
    if xp is np:
        places = np.empty(x.shape, int)
        for index in np.ndindex(nodes.shape[:-1]):
            places[index] = np.searchsorted(nodes[index], x[index], side="right")
    else:
        flat = nodes.reshape(-1, nodes.shape[-1]), x.reshape(-1, x.shape[-1])
        places = jax.vmap(partial(jnp.searchsorted, side="right"))(*flat).reshape(x.shape)
    return xp.take_along_axis(total, places, -1)


def radau_rules(diagonal: Any, off: Any, xp: ModuleType) -> tuple[Any, Any]:
    """Nodes ascending and weights, `(..., RULES, N + 1)`, of rules that match the moments 0 .. 2N."""
    N = diagonal.shape[-1]
    # Where the recurrence has settled, a = center + width cot(phase) moves the nodes by that phase between neighbors.
    cotangents = 1 / np.tan(np.pi * (np.arange(RULES) + 0.5) / RULES)
    last = (diagonal[..., -1:] + _settled(off, xp) * _row(cotangents, off, xp))[..., None]
    inner = xp.broadcast_to(diagonal[..., None, :], (*last.shape[:-1], N))
    values, vectors = eigh(tridiagonal(xp.concatenate([inner, last], -1), off[..., None, :], xp))
    return values, vectors[..., 0, :] ** 2


def even_rules(off: Any, xp: ModuleType) -> tuple[Any, Any]:
    """Nodes ascending and weights, `(..., RULES, N + 2)`, of even rules, the diagonals of whose matrices are zero.

    In order of parity such a matrix is [[0, B], [B^T, 0]], and its eigenvalues are plus and minus the singular values
    of the bidiagonal B of half the order. N is even.

    Half of them match the moments 0 .. 2N: a further row stands behind, coupled by anything. The others have a node at
    0, and a last coupling that is less than the recurrence's: their moment 2N is less than it, what is missing lies at
    infinity, and the moments before match.
    """
    N, phases = off.shape[-1], np.pi / 2 * (np.arange(RULES // 2) + 0.5) / (RULES // 2)
    none = np.zeros(RULES // 2)
    # Together their nodes go once from each Gauss node to the next.
    further = _settled(off, xp) * _row(np.concatenate([np.tan(phases), none]), off, xp)
    last = off[..., -1:] * _row(np.concatenate([none + 1, np.sin(phases)]), off, xp)
    inner = xp.broadcast_to(off[..., None, :-1], (*last.shape, N - 1))
    couplings = xp.concatenate([inner, last[..., None], further[..., None]], -1)
    left, sigma, _ = svd(bidiagonal(couplings[..., ::2], couplings[..., 1::2], xp))
    weights = left[..., 0, :] ** 2 / 2
    both = ((-sigma, sigma[..., ::-1]), (weights, weights[..., ::-1]))
    nodes, weights = (xp.concatenate(part, axis=-1) for part in both)
    return nodes, weights


def _row(values: np.ndarray, like: Any, xp: ModuleType) -> Any:
    """Numbers along the last axis."""
    return xp.asarray(values, dtype=like.dtype).reshape(*(1 for _ in like.shape[1:]), -1)


def _settled(off: Any, xp: ModuleType) -> Any:
    """The coupling where the recurrence has settled, `(..., 1)`."""
    return xp.mean(off[..., -max(1, off.shape[-1] // 4) :], axis=-1, keepdims=True)


def ends(diagonal: Any, off: Any, xp: ModuleType) -> tuple[Any, Any, Any]:
    """Gauss nodes `(..., N)` ascending, how far from each some eigenvalue lies at most, and their weights.

    Rows after a breakdown have no weight.
    """
    values, vectors = eigh(tridiagonal(diagonal, off[..., :-1], xp))
    return values, xp.abs(off[..., -1:] * vectors[..., -1, :]), vectors[..., 0, :] ** 2


def tridiagonal(diagonal: Any, off: Any, xp: ModuleType) -> Any:
    """The full matrices, `(..., N, N)`, of `diagonal` `(..., N)` and `off` `(..., N - 1)`."""
    upper = bidiagonal(xp.zeros_like(diagonal), off, xp)
    return bidiagonal(diagonal, off, xp) + xp.swapaxes(upper, -1, -2)


def bidiagonal(diagonal: Any, below: Any, xp: ModuleType) -> Any:
    """The full matrices, `(..., N, N)`, of `diagonal` `(..., N)` and what is `below` it, `(..., N - 1)`."""
    N = diagonal.shape[-1]
    lead = (1,) * (diagonal.ndim - 1)
    eye, lower = (xp.eye(N, k=k, dtype=below.dtype).reshape(*lead, N, N) for k in (0, -1))
    beside = xp.concatenate([below, xp.zeros((*below.shape[:-1], 1), below.dtype)], axis=-1)
    return diagonal[..., None, :] * eye + beside[..., None, :] * lower


def _squares(diagonal: Any, off: Any, x: Any, xp: ModuleType) -> tuple[Any, Any]:
    """The sums of p_i(x)^2 over the i of one parity and of the other, by the three-term recurrence."""
    limit = 1 / eps_of(diagonal.dtype) ** 2

    def step(state: tuple[Any, ...], row: tuple[Any, Any, Any]) -> tuple[tuple[Any, ...], None]:
        before, p, own, other = state
        alpha, beta_before, beta = (part[..., None] for part in row)
        following = ((x - alpha) * p - beta_before * before) / xp.where(beta > 0, beta, 1)
        running = (own + other < limit) & (beta > 0)
        p, following = xp.where(running, p, 0), xp.where(running, following, 0)
        return (p, following, xp.where(running, other + following**2, limit), own), None

    x = x[None]
    one = xp.ones_like(x + diagonal[..., :1])
    previous = xp.concatenate([xp.zeros_like(off[..., :1]), off[..., :-1]], axis=-1)
    columns = tuple(xp.moveaxis(part, -1, 0) for part in (diagonal, previous, off))
    state: tuple[Any, ...] = xp.zeros_like(one), one, one, xp.zeros_like(one)
    if xp is np:
        for row in zip(*columns, strict=True):
            state, _ = step(state, row)
    else:
        state, _ = jax.lax.scan(step, state, columns)
    return state[2], state[3]


def _bounded(total: Any, dtype: Any, xp: ModuleType) -> Any:
    """1 / total; 0 where it is below rounding or the space is whole."""
    return xp.where(total < 1 / eps_of(dtype) ** 2, 1 / total, 0)
