"""Scalars that stand for local Hessians, estimated: means by jvps only, the largest eigenvalue by a few products."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect_choice
from localhessian._programs import eigh, pushed
from localhessian._tree import ravel, size
from localhessian._types import Activations, Array, Key, Loss, Scalar
from localhessian.curvature._recognize import loss_hessian
from localhessian.curvature._root import at_least_single
from localhessian.linalg import eps_of, repeat
from localhessian.network import Leaves, Place, Side, curved, outputs_by

SCALARS = ("mean", "range_mean", "max")
"""The names that `estimated_scalars` takes."""
WORD = 32
"""Random signs in a word: one for each of so many probes."""


def check_scalar(name: str) -> None:
    """Refuse an unknown scalar (ValueError)."""
    expect_choice("scalar", name, SCALARS, f"one of {', '.join(SCALARS)}")


def random_words(key: Key, count: int, probes: int) -> Array:
    """Random bits, `(ceil(probes / 32), count)`: of each of `count` variables a bit for each probe, the lowest first.

    One draw serves all blocks of a network, cut up: a draw for each array would take longer to compile than the rest.
    A word that is drawn serves as many variables as it has bits for their probes: drawing takes longer than shifting.
    """
    rows, share = -(-probes // WORD), max(WORD // probes, 1)
    drawn: Array = jax.random.bits(key, (rows, -(-count // share)), jnp.uint32)
    shifts = (probes * np.arange(share)).astype(np.uint32).reshape(1, 1, share)
    return jnp.reshape(drawn[:, :, None] >> shifts, (rows, -1))[:, :count]


def estimated_scalars(
    sides: Sequence[Side], loss: Loss | None, scalar: str, place: Place, y: Any, words: Array, probes: int = 2
) -> tuple[list[Scalar], Activations]:
    """For sides of one block a number m each for H_W or H_z (Gauss-Newton part, whole batch), by random vectors; and z.

    With H = s J^T S J and random signs v, w: tr H = s E <Jv, S J v>, tr H^2 = s^2 E <Jv, S J w>^2.

    `mean` is tr(H) / dimension, the multiple of I nearest to H; `range_mean` tr(H^2) / tr(H), the mean curvature where
    gradients lie; `max` lambda_max, from below: the largest Ritz value after `probes` steps of Lanczos, a lower bound
    up to rounding, and equal to it where H has no more than `probes` eigenvalues. `loss` is that of the last block,
    None before it (S = I); `words` are from `random_words`, for the floating-point variables of the sides, one side
    after the other; none may be without any. The second result is what the block gives, which an estimate takes anyway.

    Cost: one forward pass of the block, and for each side `probes` jvps (at least 2) with an inner product each, of
    `range_mean` one of each pair; of `max` as many vjps too, in a loop, where convolutions are products on the CPU: it
    may stand in a branch, as the others may.

    Source: docs/theory.md, 5; Hutchinson (1989); Kuczynski & Wozniakowski (1992).
    """
    variables = [side.variables(place)[0] for side in sides]
    ends = np.cumsum([0, *map(size, variables)]).tolist()
    signs = [
        _signs(words[:, begin:end], leaves, probes)
        for leaves, begin, end in zip(variables, ends, ends[1:], strict=False)
    ]
    outputs = outputs_by(sides, place)
    if scalar == "max":
        z = outputs(variables)[1]
        curve = _curvature(loss, z, y)
        starts = [[leaf[0] for leaf in own] for own in signs]
        return [_largest(side, place, curve, start, probes) for side, start in zip(sides, starts, strict=True)], z
    images, z = pushed(outputs, variables, signs)
    images = list(map(at_least_single, images))
    bent = jax.vmap(jax.vmap(_curvature(loss, z, y)))(images)
    if scalar == "mean":
        traces: Any = sum(map(_traces, images, bent))
        means = [
            jnp.maximum(side.scale(place) * trace, 0) / (probes * size(leaves))
            for side, trace, leaves in zip(sides, traces, variables, strict=True)
        ]
        return means, z
    grams: Any = sum(map(_grams, images, bent))
    return [_range_mean(side.scale(place) * gram) for side, gram in zip(sides, grams, strict=True)], z


def _curvature(loss: Loss | None, z: Activations, y: Any) -> Callable[[Leaves], Leaves]:
    """S, in single precision at least."""
    hessian = None if loss is None else loss_hessian(loss, jax.tree.map(at_least_single, z), y)

    def curve(image: Leaves) -> Leaves:
        wide = list(map(at_least_single, image))
        return wide if hessian is None else hessian(wide)

    return curve


def _range_mean(gram: Array) -> Scalar:
    probes = len(gram)
    trace = jnp.maximum(jnp.mean(jnp.diagonal(gram)), 0)
    different = ~jnp.eye(probes, dtype=bool)
    squares = jnp.sum(jnp.where(different, gram**2, 0)) / (probes * (probes - 1))
    return jnp.where(trace > 0, squares / jnp.where(trace > 0, trace, 1), 0)


def _traces(one: Array, two: Array) -> Array:
    """Of the `_grams`; as sums over a leading axis, for which the CPU has a quick way that keeps digits."""
    products = (one * two).reshape(len(one), -1)
    return jnp.sum(products.T, axis=0)


def _grams(one: Array, two: Array) -> Array:
    """<Jv, S J w> of all pairs of probes, of each side: `(sides, probes, probes)`."""
    rows = [leaf.reshape(*leaf.shape[:2], -1) for leaf in (one, two)]
    return _matmul(rows[0], jnp.swapaxes(rows[1], 1, 2))


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


def _largest(side: Side, place: Place, curve: Callable[[Leaves], Leaves], start: list[Array], probes: int) -> Scalar:
    """The largest Ritz value of H after as many products."""
    variables = side.variables(place)[0]
    steps = min(probes, size(variables))
    product = curved(jax.linearize(side.outputs(place), variables)[1], variables, curve, 1.0)
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
    return side.scale(place) * jnp.maximum(eigh((projected + projected.T) / 2)[0][-1], 0)


def _matmul(one: Array, two: Array) -> Array:
    return jnp.matmul(one, two, precision=jax.lax.Precision.HIGHEST)
