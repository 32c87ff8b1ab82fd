"""Scalars that stand for local Hessians, estimated: means by jvps only, the largest eigenvalue by a few products."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect_choice
from localhessian._programs import eigh
from localhessian._tree import ravel, size
from localhessian._types import Array, Key, Loss, Scalar
from localhessian.curvature._recognize import loss_hessian
from localhessian.curvature._root import at_least_single
from localhessian.linalg import eps_of, repeat
from localhessian.network import Leaves, Place, Side, applied, curved

SCALARS = ("mean", "range_mean", "max")
"""The names that `local_scalar` takes."""
WORD = 32
"""Random signs in a word: one for each of so many probes."""


def check_scalar(name: str) -> None:
    """Refuse an unknown scalar (ValueError)."""
    expect_choice("scalar", name, SCALARS, f"one of {', '.join(SCALARS)}")


def random_words(key: Key, count: int, probes: int) -> Array:
    """Random bits, `(ceil(probes / 32), count)`: of each of `count` variables a bit for each probe.

    One draw serves all blocks of a network, cut up: a draw for each array would take longer to compile than the rest.
    """
    return jax.random.bits(key, (-(-probes // WORD), count), jnp.uint32)


def local_scalar(
    side: Side, loss: Loss | None, scalar: str, place: Place, y: Any, words: Array, probes: int = 2
) -> Scalar:
    """One number m for H_W or H_z of a block (Gauss-Newton part, whole batch), estimated with random vectors.

    With H = s J^T S J and random signs v, w: tr H = s E <Jv, S J v>, tr H^2 = s^2 E <Jv, S J w>^2.

    `mean` is tr(H) / dimension, the multiple of I nearest to H; `range_mean` tr(H^2) / tr(H), the mean curvature where
    gradients lie; `max` lambda_max, from below: the largest Ritz value after `probes` steps of Lanczos, a lower bound
    up to rounding, and equal to it where H has no more than `probes` eigenvalues. `loss` is that of the last block,
    None before it (S = I); `words` are from `random_words`, for the floating-point variables of this side.

    Cost: one forward pass of the block and `probes` jvps (at least 2); of `max` as many vjps too, in a loop, where
    convolutions are products on the CPU: it may stand in a branch, as the others may.

    Source: docs/theory.md, 5; Hutchinson (1989); Kuczynski & Wozniakowski (1992).
    """
    variables, outputs, scale = side.variables(place)[0], side.outputs(place), side.scale(place)
    hessian = None if loss is None else loss_hessian(loss, jax.tree.map(at_least_single, applied(side.block, place)), y)

    def curve(image: Leaves) -> Leaves:
        wide = list(map(at_least_single, image))
        return wide if hessian is None else hessian(wide)

    signs = _signs(words, variables, probes)
    if scalar == "max":
        product = curved(jax.linearize(outputs, variables)[1], variables, curve, 1.0)
        return scale * _largest(product, [leaf[0] for leaf in signs], min(probes, size(variables)))
    images = jax.vmap(lambda sign: list(map(at_least_single, jax.jvp(outputs, (variables,), (sign,))[1])))(signs)
    pairs = list(zip(images, jax.vmap(curve)(images), strict=True))
    if scalar == "mean":
        total = scale * sum(jnp.sum(one * two) for one, two in pairs)
        return jnp.maximum(total, 0) / (probes * size(variables))
    gram = scale * sum(_matmul(one.reshape(probes, -1), two.reshape(probes, -1).T) for one, two in pairs)
    trace = jnp.maximum(jnp.mean(jnp.diagonal(gram)), 0)
    different = ~jnp.eye(probes, dtype=bool)
    squares = jnp.sum(jnp.where(different, gram**2, 0)) / (probes * (probes - 1))
    return jnp.where(trace > 0, squares / jnp.where(trace > 0, trace, 1), 0)


def _signs(words: Array, variables: list[Array], probes: int) -> list[Array]:
    """Random signs of the shapes of the variables, stacked on axis 0."""
    rows, shifts = np.divmod(np.arange(probes), WORD)
    ends = np.cumsum([leaf.size for leaf in variables])
    signs = []
    for leaf, end in zip(variables, ends.tolist(), strict=True):
        own = words[:, end - leaf.size : end]
        own = own if len(own) == 1 else own[rows]
        bits = (own >> jnp.asarray(shifts, jnp.uint32)[:, None]) & jnp.uint32(1)
        one = jnp.ones((), leaf.dtype)
        signs.append(jnp.where(bits == 0, -one, one).reshape(probes, *leaf.shape))
    return signs


def _largest(product: Callable[..., Any], start: list[Array], steps: int) -> Scalar:
    """The largest Ritz value of a positive semi-definite operator after `steps` products."""
    first, unravel = ravel(start)
    narrow, first = first.dtype, at_least_single(first)
    dtype = first.dtype

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        at, basis, images = state
        image = at_least_single(ravel(product(unravel(basis[at].astype(narrow))))[0])
        rest = image
        for _ in range(2):
            rest = rest - _matmul(basis.T, _matmul(basis, rest))
        length, whole = jnp.linalg.norm(rest), jnp.linalg.norm(image)
        # What is left of an invariant subspace is rounding: a vector of zeros adds nothing to it.
        live = length > 100 * eps_of(dtype) * whole
        rest = jnp.where(live, rest / jnp.where(live, length, 1), 0)
        return at + 1, basis.at[at + 1].set(rest, mode="drop"), images.at[at].set(image)

    none = jnp.zeros((steps, first.size), dtype)
    state = jnp.zeros((), jnp.int32), none.at[0].set(first / jnp.linalg.norm(first)), none
    # Never written out: the CPU runs a convolution's vjp slowly in a branch too, where a caller may have put this.
    _, basis, images = repeat(step, state, steps, few=0)
    projected = _matmul(basis, images.T)
    return jnp.maximum(eigh((projected + projected.T) / 2)[0][-1], 0)


def _matmul(one: Array, two: Array) -> Array:
    return jnp.matmul(one, two, precision=jax.lax.Precision.HIGHEST)
