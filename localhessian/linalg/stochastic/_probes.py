"""Products with random or unit vectors, one after another, for the estimators of traces."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._arguments import expect_count, number, short
from localhessian._mesh import everywhere, is_traced
from localhessian._programs import compiled, compiled_if_eager
from localhessian._status import Status
from localhessian._tree import is_concrete, pytree, static
from localhessian._types import Array, Float, Int, Key
from localhessian.linalg.operators import Operator, call, contradiction, repeat, rows_of, unbatched
from localhessian.linalg.spectra import SpectrumError


@pytree
class TraceEstimate:
    """A trace, or a figure made of traces, with its error bar; of a batched operator a leading axis `s`."""

    value: Array
    """`(*s,)`, of a diagonal `(*s, d)`."""
    standard_error: Array
    """Of the value, estimated from the same probes; 0 where it is exact."""
    status: Int[Array, "*s"]
    """A `localhessian.Status` code: CONVERGED, NON_FINITE, or ZERO where a ratio of traces is asked of H = 0."""
    probes: int = static()
    """How many vectors were multiplied."""
    exact: bool = static()
    """Whether the probes were all unit vectors, so that only rounding is left."""


def each_probe(function: Partial, vectors: Partial, count: int, operator: Operator) -> Array:
    """function(v) of every probe, `(count, s, ...)`: from the host where there are numbers, else compiled whole."""
    shape, dtype = (operator.batch or 1, operator.size), operator.dtype

    def one(i: int) -> Any:
        v = _probe_vector(vectors, i, shape, dtype)
        return call(function, v) if operator.in_programs else function(v)

    first = one(0)
    if not is_traced(first):
        return jnp.stack([first, *map(one, range(1, count))])
    return _all_probes(function, vectors, count, shape, dtype)


@compiled_if_eager(static_argnums=(2, 3, 4))
def _all_probes(function: Partial, vectors: Partial, count: int, shape: tuple[int, int], dtype: Any) -> Array:
    like = jax.eval_shape(lambda: function(vectors(0, shape, dtype)))

    def step(state: Any) -> Any:
        i, found = state
        return i + 1, found.at[i].set(function(_probe_vector(vectors, i, shape, dtype)))

    start = jnp.zeros((), jnp.int32), jnp.zeros((count, *like.shape), like.dtype)
    return cast(Array, repeat(step, start, count)[1])


def multiplied(operator: Operator, v: Float[Array, "s d"]) -> Float[Array, "s m"]:
    """H v or A v."""
    return rows_of(operator.product, operator.batch)(v)


def itself(v: Array) -> Array:
    """v: where the probes themselves are wanted."""
    return v


@compiled(static_argnums=(2, 3))
def _probe_vector(vectors: Partial, i: Any, shape: tuple[int, int], dtype: Any) -> Float[Array, "s d"]:
    return cast(Array, vectors(i, shape, dtype))


def random_signs(key: Key, i: Any, shape: tuple[int, int], dtype: Any) -> Float[Array, "s d"]:
    """The i-th probe, of independent signs."""
    return jax.random.rademacher(jax.random.fold_in(key, i), shape, dtype)


def on_sphere(key: Key, i: Any, shape: tuple[int, int], dtype: Any) -> Float[Array, "s d"]:
    """The i-th probe, uniform on the sphere of radius sqrt(d)."""
    v = jax.random.normal(jax.random.fold_in(key, i), shape, dtype)
    return cast(Array, v * (shape[1] ** 0.5 / jnp.linalg.norm(v, axis=1, keepdims=True)))


def unit_vector(key: Key, i: Any, shape: tuple[int, int], dtype: Any) -> Float[Array, "s d"]:
    """The i-th basis vector, for exact sums."""
    del key
    return jnp.broadcast_to(jax.nn.one_hot(i, shape[1], dtype=dtype), shape)


def row_of(vectors: Float[Array, "p s d"], i: Any, shape: tuple[int, int], dtype: Any) -> Float[Array, "s d"]:
    """The i-th of given vectors."""
    del shape, dtype
    return cast(Array, jax.lax.dynamic_index_in_dim(vectors, i, keepdims=False))


@compiled_if_eager()
def averaged(samples: Array) -> tuple[Array, Array]:
    """Over the leading axis, with its standard error."""
    return jnp.mean(samples, axis=0), spread(samples)


def spread(samples: Array) -> Array:
    """Standard error of the mean over the leading axis."""
    return cast(Array, jnp.std(samples, axis=0, ddof=1) / len(samples) ** 0.5)


@compiled_if_eager()
def summed(samples: Array) -> Array:
    """Over the leading axis."""
    return jnp.sum(samples, axis=0)


def result(
    value: Array, error: Array | None, probes: int, exact: bool, operator: Any, zero: Array | None = None
) -> TraceEstimate:
    """The estimate, of figures `(s, ...)`; `zero` says where H = 0 leaves it undefined.

    Raises:
        SpectrumError: it is not finite, or the products are none of a symmetric matrix, which is known only outside of
            transformations.
    """
    wrong = contradiction(operator)
    if wrong is not None:
        raise SpectrumError(f"{operator.label or 'the operator'}: {wrong.message}")
    value, error, status = _told(everywhere((value, error, zero)), operator.batch)
    if is_concrete(status) and bool((np.asarray(status) == int(Status.NON_FINITE)).any()):
        raise SpectrumError(f"{operator.label or 'the operator'}: {Status.NON_FINITE.message}")
    return TraceEstimate(value, error, status, probes, exact)


@compiled_if_eager(static_argnums=1)
def _told(figures: tuple[Array, Array | None, Array | None], batch: int | None) -> tuple[Array, Array, Array]:
    """Value, error and status; of a single operator without the axis s."""
    value, error, zero = figures
    axes = tuple(range(1, value.ndim))
    finite = jnp.all(jnp.isfinite(value), axis=axes)
    status = jnp.where(finite, int(Status.CONVERGED), int(Status.NON_FINITE))
    status = status if zero is None else jnp.where(zero, int(Status.ZERO), status)
    error = jnp.zeros_like(value) if error is None else error
    error = jnp.where(jnp.expand_dims(finite, axes), error, jnp.nan)
    return unbatched(value, batch), unbatched(error, batch), unbatched(status.astype(jnp.int32), batch)


def check_probes(probes: int, least: int, how: str = "") -> None:
    """Refuse what is no number of random vectors, and too few for an error bar."""
    found = number(probes, "iu")
    if found is not None and found < least:
        raise ValueError(f"`probes` must be at least {least} for an error bar{how}, got {probes}.")
    expect_count("probes", probes, least)


def check_estimator(method: Any, *kinds: type) -> None:
    """Refuse what is none of the methods that a figure takes (TypeError); None stands for the default."""
    if method is not None and not isinstance(method, kinds):
        settings = [f"probes={kind.probes}" if hasattr(kind, "probes") else "" for kind in kinds]
        forms = [f"`lh.{kind.__name__}({given})`" for kind, given in zip(kinds, settings, strict=True)]
        raise TypeError(f"`method` must be {', '.join(forms)} or None, got {short(method)}.")
