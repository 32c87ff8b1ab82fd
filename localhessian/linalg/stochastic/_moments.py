"""Figures made of tr(H) and tr(H^2), from products alone, with the jackknife's standard errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._arguments import expect_key
from localhessian._programs import compiled_if_eager
from localhessian._tree import to_device
from localhessian._types import Array, Float, Key
from localhessian.linalg.krylov import TRACED
from localhessian.linalg.operators import Operator, SymmetricOperator, check_operator
from localhessian.linalg.stochastic._hutchinson import Hutchinson
from localhessian.linalg.stochastic._probes import (
    TraceEstimate,
    check_estimator,
    check_probes,
    each_probe,
    multiplied,
    random_signs,
    result,
    unit_vector,
)
from localhessian.linalg.structure import Structured


def frobenius_norm(
    operator: Operator,
    /,
    method: Hutchinson | Structured | None = None,
    *,
    key: Key | None = None,
) -> TraceEstimate:
    """The Frobenius norm of a symmetric operator, or of A^T A of a linear map A: the root of tr(H^2).

    tr H^2 = E ||H v||^2 for random signs v; of a factor R, by R^T R or R R^T, whichever is smaller

    Args:
        operator: Any operator; batched operators give one estimate each.
        method: `lh.Hutchinson`, of at least three probes (exact where the operator, or its factor's smaller side, is no
            larger than `probes`); `lh.Structured` is exact where it finds something: Gram matrices, and no
            decomposition. None takes `lh.Hutchinson(probes=32)`.
        key: Of the random signs; default `jax.random.key(0)`.

    Returns:
        The norm, with the standard error of the jackknife. Works under `jax.jit` and `jax.vmap`, but for
        `lh.Structured`, which needs numbers.

    Raises:
        SpectrumError: Products are not finite, or none of a symmetric matrix (under `jax.jit` only `status` tells).
        TypeError: `method` is none of these.
        ValueError: It has less than 3 probes; `lh.Structured` declines, or has `blocks`, whose ends tell no trace.

    Cost: `probes` products with H; see the method.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> print(lh.frobenius_norm(lh.symmetric_operator(lambda v: jnp.array([3.0, 4.0]) * v, 2)).value)
        5.0
    """
    check_operator(operator)
    expect_key(key)
    return _of_moments(lambda first, second: jnp.sqrt(jnp.maximum(second, 0)), operator, method, key)


def range_mean(
    operator: Operator,
    /,
    method: Hutchinson | Structured | None = None,
    *,
    key: Key | None = None,
) -> TraceEstimate:
    r"""tr(H^2) / tr(H): the mean eigenvalue weighted by itself, which leaves the null space out.

    Args:
        operator: A semi-definite operator; batched operators give one estimate each.
        method: `lh.Hutchinson`, of at least three probes (exact where the operator, or its factor's smaller side, is no
            larger than `probes`); `lh.Structured` is exact where it finds something: Gram matrices, and no
            decomposition. None takes `lh.Hutchinson(probes=32)`.
        key: Of the random signs; default `jax.random.key(0)`.

    Returns:
        The ratio of the estimates of both traces from the same probes, with the standard error of the jackknife; NaN
        where tr(H) is zero. Works under `jax.jit` and `jax.vmap`, but for `lh.Structured`, which needs numbers.

    Raises:
        SpectrumError: Products are not finite, or none of a symmetric matrix (under `jax.jit` only `status` tells).
        TypeError: `method` is none of these.
        ValueError: It has less than 3 probes; `lh.Structured` declines, or has `blocks`, whose ends tell no trace.

    Cost: `probes` products with H; see the method.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> print(lh.range_mean(lh.symmetric_operator(lambda v: jnp.array([0.0, 1.0, 3.0]) * v, 3)).value)
        2.5

    Source: the scalar `range_mean` of scale-amended SGD.
    """
    check_operator(operator)
    expect_key(key)
    return _of_moments(_ratio, operator, method, key)


def _ratio(first: Any, second: Any) -> Any:
    return second / jnp.where(first == 0, jnp.nan, first)


def _of_moments(
    figure: Callable[[Any, Any], Any],
    operator: Operator,
    method: Hutchinson | Structured | None,
    key: Key | None,
) -> TraceEstimate:
    """A function of tr(H) and tr(H^2), of degree one in H, with the jackknife's standard error."""
    check_estimator(method, Hutchinson, Structured)
    if isinstance(method, Structured):
        return exact_moment(operator, method, figure)
    probes = (method or Hutchinson()).probes
    check_probes(probes, 3)
    key = jax.random.key(0) if key is None else key
    factor, symmetric = operator.factor, operator.symmetric
    if factor is not None:
        # R^T R and R R^T have the same traces.
        symmetric = (factor if factor.in_size <= factor.out_size else factor.T).symmetric
    exact = symmetric.size <= probes
    count = symmetric.size if exact else probes
    vectors = Partial(unit_vector if exact else random_signs, key)
    both = each_probe(Partial(_two_forms, symmetric.prepare()), vectors, count, symmetric)
    value, error, nothing = _told(both, figure, exact)
    return result(value, error, count, exact, operator, nothing)


@compiled_if_eager(static_argnums=(1, 2))
def _told(both: Float[Array, "p s 2"], figure: Callable[[Any, Any], Any], exact: bool) -> tuple[Any, Any, Any]:
    """The figure, its error (None if exact), and where it is none, from v^T H v and ||H v|| of every probe."""
    count, size = len(both), jnp.max(both[..., 1], axis=0)
    # In this unit the squares of what is as large neither overflow nor vanish.
    unit = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
    first, second = both[..., 0] / unit[None], (both[..., 1] / unit[None]) ** 2
    if exact:
        sums = jnp.sum(first, 0), jnp.sum(second, 0)
        return unit * figure(*sums), None, _nothing(figure, *sums)
    left_out = figure(*((jnp.sum(part, 0, keepdims=True) - part) / (count - 1) for part in (first, second)))
    error = unit * jnp.std(left_out, axis=0) * (count - 1) ** 0.5
    means = jnp.mean(first, 0), jnp.mean(second, 0)
    return unit * figure(*means), error, _nothing(figure, *means)


@compiled_if_eager(static_argnums=0)
def _of_exact(figure: Callable[[Any, Any], Any], first: Any, second: Any, unit: Any) -> tuple[Any, Any]:
    return unit * figure(first, second), _nothing(figure, first, second)


def _nothing(figure: Callable[..., Any], first: Array, second: Array) -> Array:
    """Where a ratio is asked of H = 0."""
    return (first == 0) & (second == 0) & (figure is _ratio)


def exact_moment(operator: Operator, method: Structured, figure: Callable[[Any, Any], Any]) -> TraceEstimate:
    """A function of tr(H) and tr(H^2), of degree one in H, by structure.

    Raises:
        ValueError: There is none, or only the ends of its blocks are asked for.
    """
    if method.blocks is not None:
        raise ValueError(
            "`method`: the ends that `Structured(blocks=...)` iterates for tell no trace: leave `blocks` out."
        )
    trace, squares = np.moveaxis(method.require(operator).squares(), -1, 0)
    norm = np.where(squares > 0, np.sqrt(squares), 1)
    parts = (to_device(np.reshape(part, -1), operator.dtype) for part in (trace / norm, squares / norm**2, norm))
    value, nothing = _of_exact(figure, *parts)
    return result(value, None, 1, True, operator, nothing)


def _two_forms(operator: SymmetricOperator, v: Float[Array, "s d"]) -> Float[Array, "s 2"]:
    moved = multiplied(operator, v)
    return jnp.stack([jnp.sum(v * moved, axis=-1), TRACED.lengths(moved)], axis=-1)
