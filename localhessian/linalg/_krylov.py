"""What the Krylov methods share: orthogonalization, growth of a basis, the choice of wanted values, the probes.

Vectors carry a leading axis `s` of independent problems here (s = 1 for a single one); a basis is row-major,
`(k, s, d)`, so that one pass of orthogonalization reads it once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._status import Status
from localhessian._tree import pytree
from localhessian._types import Array, Float, Key

HIGHEST = jax.lax.Precision.HIGHEST
BUCKET = 32
"""Rows by which a basis grows on the host: one compiled step for each multiple."""


def rows(product: Partial, batch: int | None) -> Callable[[Array], Array]:
    """The product on vectors with the leading axis s."""
    return product if batch is not None else lambda v: product(v[0])[None]


def orthogonalize(basis: Float[Array, "k s d"], w: Float[Array, "s d"]) -> Float[Array, "s d"]:
    """w without its components along the basis, in two passes (one leaves the rounding of what it removed)."""
    for _ in range(2):
        components = jnp.einsum("ksd,sd->ks", basis, w, precision=HIGHEST)
        w = w - jnp.einsum("ks,ksd->sd", components, basis, precision=HIGHEST)
    return w


def normalize(w: Float[Array, "s d"], floor: Float[Array, " s"]) -> tuple[Array, Array]:
    """Norms and unit vectors; both zero where the norm is not above the floor (breakdown)."""
    norm = jnp.linalg.norm(w, axis=-1)
    broken = ~(norm > floor)
    safe = jnp.where(broken, 1, norm)
    return jnp.where(broken, 0, norm), jnp.where(broken[:, None], 0, w / safe[:, None])


def random_unit(key: Key, shape: tuple[int, int], dtype: Any) -> Float[Array, "s d"]:
    """Random directions."""
    v = jax.random.normal(key, shape, dtype)
    return v / jnp.linalg.norm(v, axis=-1, keepdims=True)


def grow(basis: Float[Array, "k s d"], count: int) -> Float[Array, "k2 s d"]:
    """The basis with room for `count` rows, in multiples of a bucket."""
    missing = -(-count // BUCKET) * BUCKET - len(basis)
    return basis if missing <= 0 else jnp.concatenate([basis, jnp.zeros((missing, *basis.shape[1:]), basis.dtype)])


def repeat(step: Callable, state: Any, count: int, example: Callable[[], Any]) -> Any:
    """`count` steps inside a compiled program: a loop, unrolled where the CPU would run convolutions slowly in it."""
    if jax.default_backend() == "cpu" and contains_convolution(jax.make_jaxpr(example)()):
        for _ in range(count):
            state = step(state)
        return state
    return jax.lax.fori_loop(0, count, lambda _, state: step(state), state)


def contains_convolution(jaxpr: Any) -> bool:
    """Whether a program convolves, at any depth (jax#12868: 100 times slower inside a loop on the CPU)."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in inner.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if (hasattr(value, "eqns") or hasattr(value, "jaxpr")) and contains_convolution(value):
                return True
    return False


@pytree
class Wanted:
    """Which Ritz pairs are returned: places into the ascending values, `(s, k)`, and which of them are real."""

    places: Any
    real: Any


def wanted(which: str, k: int, count: Any, order: int, everything: bool, xp: Any) -> Wanted:
    """Places of the wanted values among `count` ascending ones (those after are empty slots)."""
    slots = xp.arange(order, dtype=count.dtype)[None, :]
    if everything:
        places = slots + 0 * count[:, None]
        return Wanted(places, places < count[:, None])
    k = min(k, order)
    low = slots[:, :k] + 0 * count[:, None]
    high = slots[:, :k] + count[:, None] - k
    if which == "smallest":
        places, real = low, low < count[:, None]
    elif which == "largest":
        places, real = high, high >= 0
    else:
        places = xp.concatenate([low, high], axis=1)
        real = xp.concatenate([low < xp.minimum(count[:, None], high[:, :1]), high >= 0], axis=1)
    return Wanted(xp.clip(places, 0, order - 1), real)


def sort_real_first(values: Array, real: Array, *others: Array) -> tuple[Array, ...]:
    """Real values ascending, empty slots at the end with NaN; the same order for arrays along their last axis."""
    order = jnp.argsort(jnp.where(real, values, jnp.inf), axis=-1)
    taken = jnp.take_along_axis(real, order, axis=-1)
    out = [jnp.where(taken, jnp.take_along_axis(values, order, axis=-1), jnp.nan), taken]
    for other in others:
        out.append(jnp.where(taken, jnp.take_along_axis(other, order, axis=-1), jnp.nan))
    return tuple(out)


def combine(basis: Float[Array, "K s d"], weights: Float[Array, "s K k"]) -> Float[Array, "k s d"]:
    """Ritz vectors from the basis."""
    weights = jnp.asarray(weights, basis.dtype)
    return jnp.einsum("jsd,sjk->ksd", basis[: weights.shape[1]], weights, precision=HIGHEST)


def probe(product: Callable[[Array], Array], key: Key, shape: tuple[int, int], dtype: Any) -> tuple[Array, Array]:
    """Before long work: status by two products (three matvecs), and the product of the first.

    Not finite; not the same twice; <u, Hv> and <v, Hu> apart by more than rounding.
    """
    u, v = jax.random.normal(key, (2, *shape), dtype)
    hu, again, hv = product(u), product(u), product(v)
    scale = jnp.linalg.norm(hu, axis=-1) * jnp.linalg.norm(v, axis=-1)
    scale = scale + jnp.linalg.norm(hv, axis=-1) * jnp.linalg.norm(u, axis=-1)
    skew = jnp.abs(jnp.sum(hu * v, axis=-1) - jnp.sum(hv * u, axis=-1))
    tolerance = 100 * jnp.finfo(dtype).eps ** 0.75  # between rounding and a skew part that matters
    status = jnp.where(skew > tolerance * scale, int(Status.NOT_SYMMETRIC), int(Status.CONVERGED))
    status = jnp.where(jnp.any(hu != again, axis=-1), int(Status.NOT_DETERMINISTIC), status)
    finite = jnp.all(jnp.isfinite(hu) & jnp.isfinite(hv), axis=-1)
    return jnp.where(finite, status, int(Status.NON_FINITE)), hu


def unbatched(value: Any, batch: int | None) -> Any:
    """Without the leading axis s where there is a single problem."""
    return value if batch is not None or value is None else value[0]


def host(state: Any) -> Any:
    """Numbers of the device as float64 arrays of the host, integers and booleans as they are."""
    return jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else np.asarray(leaf),
        state,
    )
