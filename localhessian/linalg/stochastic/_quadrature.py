"""Cumulative distributions from Jacobi matrices, with bounds that no measure of the same moments escapes.

N steps of Lanczos know the moments 0 .. 2N of the start vector's spectral measure. The matrices of order N + 1 that
continue the Jacobi matrix by *any* last diagonal element a are Gauss-Radau rules with these moments; and any two
measures G, F with these moments differ by little at every point x (Chebyshev, Markov, Stieltjes):

    |G(x) - F(x)| <= c(x) = 1 / sum_{i=0..N} p_i(x)^2,      p_i the orthonormal polynomials.

c is large inside the bulk, where N steps cannot resolve eigenvalues, and vanishes in the gaps between resolved ones. So
a few rules G_m, with elements a_m that spread their nodes evenly, bracket the true distribution F:

    max_m G_m(x) - c(x)  <=  F(x)  <=  min_m G_m(x) + c(x),      both made monotone, within [0, 1].

After a breakdown all rules are F itself, and c = 0. Source: N. I. Akhiezer, The Classical Moment Problem (1965), ch. 2.
"""

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._programs import eigh
from localhessian.linalg.operators import eps_of

RULES = 8
"""Radau rules for each start: with more the bracket shrinks from at most 2 c(x) towards c(x)."""


def bracket(diagonal: Any, off: Any, x: Any, xp: ModuleType, *, even: bool = False) -> tuple[Any, Any]:
    """Bounds of the cumulative distribution of unit start vectors at the points x, `(s, E)`, in any order.

    Of Jacobi matrices `(p, s, N)`: the last element of `off` couples to a further row, and zeros decouple what follows.
    `even`: the diagonals are zero, so that half of the rules mirror the others.

    Returns:
        Lower and upper bounds `(p, s, E)`.
    """
    order = xp.argsort(x, axis=-1)
    x = xp.take_along_axis(x, order, -1)
    shares = _shares(*radau_rules(diagonal, off, xp, even=even), x, xp)
    slack = christoffel(diagonal, off, x, xp)
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


def radau_rules(diagonal: Any, off: Any, xp: ModuleType, *, even: bool = False) -> tuple[Any, Any]:
    """Nodes ascending and weights, `(..., RULES, N + 1)`, of rules that match the moments 0 .. 2N."""
    N = diagonal.shape[-1]
    # Where the recurrence has settled, a = center + width cot(phase) moves the nodes by that phase between neighbors.
    center, width = diagonal[..., -1:], xp.mean(off[..., -max(1, N // 4) :], axis=-1, keepdims=True)
    cotangents = xp.asarray(
        1 / np.tan(np.pi * (np.arange(RULES // 2 if even else RULES) + 0.5) / RULES), dtype=diagonal.dtype
    )
    last = (center + width * cotangents.reshape(*(1 for _ in diagonal.shape[1:]), -1))[..., None]
    inner = xp.broadcast_to(diagonal[..., None, :], (*last.shape[:-1], N))
    values, vectors = eigh(tridiagonal(xp.concatenate([inner, last], -1), off[..., None, :], xp))
    weights = vectors[..., 0, :] ** 2
    if even:
        values = xp.concatenate([values, -values[..., ::-1]], axis=-2)
        weights = xp.concatenate([weights, weights[..., ::-1]], axis=-2)
    return values, weights


def ends(diagonal: Any, off: Any, xp: ModuleType) -> tuple[Any, Any, Any]:
    """Gauss nodes `(..., N)` ascending, how far from each some eigenvalue lies at most, and their weights.

    Rows after a breakdown have no weight.
    """
    values, vectors = eigh(tridiagonal(diagonal, off[..., :-1], xp))
    return values, xp.abs(off[..., -1:] * vectors[..., -1, :]), vectors[..., 0, :] ** 2


def tridiagonal(diagonal: Any, off: Any, xp: ModuleType) -> Any:
    """The full matrices, `(..., N, N)`, of `diagonal` `(..., N)` and `off` `(..., N - 1)`."""
    N = diagonal.shape[-1]
    beside = xp.concatenate([xp.zeros((*off.shape[:-1], 1), off.dtype), off], axis=-1)
    lead = (1,) * (diagonal.ndim - 1)
    eye, shifted = (xp.eye(N, k=k, dtype=off.dtype).reshape(*lead, N, N) for k in (0, 1))
    upper = beside[..., None, :] * shifted
    return diagonal[..., None, :] * eye + upper + xp.swapaxes(upper, -1, -2)


def christoffel(diagonal: Any, off: Any, x: Any, xp: ModuleType) -> Any:
    """c(x) = 1 / sum p_i(x)^2, by the three-term recurrence; 0 where it is below rounding or the space is whole."""
    limit = 1 / eps_of(diagonal.dtype) ** 2

    def step(state: tuple[Any, Any, Any], row: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any, Any], None]:
        before, p, total = state
        alpha, beta_before, beta = (part[..., None] for part in row)
        following = ((x - alpha) * p - beta_before * before) / xp.where(beta > 0, beta, 1)
        running = (total < limit) & (beta > 0)
        p, following = xp.where(running, p, 0), xp.where(running, following, 0)
        return (p, following, xp.where(running, total + following**2, limit)), None

    x = x[None]
    one = xp.ones_like(x + diagonal[..., :1])
    previous = xp.concatenate([xp.zeros_like(off[..., :1]), off[..., :-1]], axis=-1)
    columns = tuple(xp.moveaxis(part, -1, 0) for part in (diagonal, previous, off))
    state = (xp.zeros_like(one), one, one)
    if xp is np:
        for row in zip(*columns, strict=True):
            state, _ = step(state, row)
    else:
        state, _ = jax.lax.scan(step, state, columns)
    total = state[2]
    return xp.where(total < limit, 1 / total, 0)
