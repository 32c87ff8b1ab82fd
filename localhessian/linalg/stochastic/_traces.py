"""Traces and diagonals from products alone, with standard errors."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from localhessian._arguments import expect_key
from localhessian._programs import compiled_if_eager
from localhessian._types import Array, Float, Key
from localhessian.linalg.operators import Operator, SymmetricOperator, check_operator
from localhessian.linalg.stochastic._deflation import HutchPlusPlus, XTrace
from localhessian.linalg.stochastic._hutchinson import Hutchinson, quadratic_form
from localhessian.linalg.stochastic._moments import exact_moment
from localhessian.linalg.stochastic._probes import (
    TraceEstimate,
    averaged,
    check_estimator,
    each_probe,
    multiplied,
    random_signs,
    result,
    summed,
    unit_vector,
)
from localhessian.linalg.structure import Structured


def trace(
    operator: Operator,
    /,
    method: Hutchinson | HutchPlusPlus | XTrace | Structured | None = None,
    *,
    key: Key | None = None,
) -> TraceEstimate:
    r"""The trace of a symmetric operator, or of A^T A of a linear map A.

    Args:
        operator: Any operator; batched operators give one estimate each.
        method: `lh.Hutchinson` for a few products with any spectrum; `lh.XTrace` or `lh.HutchPlusPlus` where products
            are to be spent on the large eigenvalues; `lh.Structured` is exact where it finds something: Gram matrices,
            and no decomposition. None takes `lh.Hutchinson(probes=32)`. Where the operator (or the smaller side of its
            factor) is no larger than `probes`, unit vectors give the exact trace.
        key: Of the random vectors; default `jax.random.key(0)`.

    Returns:
        The estimate with its standard error, `(*s,)`. Works under `jax.jit` and `jax.vmap`, but for `lh.Structured`,
        which needs numbers.

    Raises:
        SpectrumError: Products are not finite, or none of a symmetric matrix (under `jax.jit` only `status` tells).
        TypeError: `method` is none of these.
        ValueError: `lh.Structured` declines, or has `blocks`, whose ends tell no trace.

    Cost: see the method.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> H = lh.symmetric_operator(lambda v: jnp.array([3.0, 1.0]) * v, 2)
        >>> print(lh.trace(H).value, lh.trace(H, lh.XTrace(probes=8)).value)
        4.0 4.0
    """
    check_operator(operator)
    expect_key(key)
    check_estimator(method, Hutchinson, HutchPlusPlus, XTrace, Structured)
    if isinstance(method, Structured):
        return exact_moment(operator, method, _itself)
    method = Hutchinson() if method is None else method
    key = jax.random.key(0) if key is None else key
    factor = operator.factor
    if factor is not None and min(factor.in_size, factor.out_size) <= method.probes:
        narrow = factor if factor.in_size <= factor.out_size else factor.T
        squares = each_probe(Partial(multiplied, narrow.prepare()), Partial(unit_vector, key), narrow.in_size, narrow)
        return result(_squares(squares, (0, 2)), None, narrow.in_size, True, operator)
    if operator.size <= method.probes:
        form = Partial(quadratic_form, operator.symmetric.prepare())
        forms = each_probe(form, Partial(unit_vector, key), operator.size, operator)
        return result(summed(forms), None, operator.size, True, operator)
    return method.trace(operator, key)


def diagonal(operator: Operator, /, method: Hutchinson | None = None, *, key: Key | None = None) -> TraceEstimate:
    """The diagonal of a symmetric operator, or of A^T A of a linear map A, by products alone.

    diag H = E v * (H v), elementwise, for random signs v; the variance of entry i is the sum of the squares of the
    other entries of its row, over the number of probes.

    Args:
        operator: Any operator; batched operators give one diagonal each.
        method: How many products; None takes `lh.Hutchinson(probes=32)`. Where the operator (or its factor's output) is
            no larger than `probes`, unit vectors give the exact diagonal.
        key: Of the random signs; default `jax.random.key(0)`.

    Returns:
        Values and standard errors, `(*s, d)`. Works under `jax.jit` and `jax.vmap`.

    Raises:
        SpectrumError: Products are not finite, or none of a symmetric matrix (under `jax.jit` only `status` tells).
        TypeError: `method` is another one.

    Cost: `probes` products with H; memory `probes * d` numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> print(lh.diagonal(lh.symmetric_operator(lambda v: jnp.array([3.0, 1.0]) * v, 2)).value)
        [3. 1.]

    Source: C. Bekas, E. Kokiopoulou and Y. Saad, Appl. Numer. Math. 57 (2007) 1214.
    """
    check_operator(operator)
    expect_key(key)
    check_estimator(method, Hutchinson)
    probes = (method or Hutchinson()).probes
    key = jax.random.key(0) if key is None else key
    factor = operator.factor
    if factor is not None and factor.out_size <= probes:
        lines = each_probe(
            Partial(multiplied, factor.T.prepare()), Partial(unit_vector, key), factor.out_size, factor.T
        )
        return result(_squares(lines, 0), None, factor.out_size, True, operator)
    symmetric = operator.symmetric
    exact = symmetric.size <= probes
    count = symmetric.size if exact else probes
    vectors = Partial(unit_vector if exact else random_signs, key)
    entries = each_probe(Partial(_entries, symmetric.prepare()), vectors, count, symmetric)
    if exact:
        return result(summed(entries), None, count, True, operator)
    return result(*averaged(entries), count, False, operator)


def _itself(first: Any, _: Any) -> Any:
    """tr(H) of tr(H) and tr(H^2)."""
    return first


@compiled_if_eager(static_argnums=1)
def _squares(samples: Array, axis: int | tuple[int, ...]) -> Array:
    return jnp.sum(samples**2, axis=axis)


def _entries(operator: SymmetricOperator, v: Float[Array, "s d"]) -> Float[Array, "s d"]:
    return v * multiplied(operator, v)
