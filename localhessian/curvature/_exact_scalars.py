"""The scalars of all blocks of a network, from their local Hessians as operators: exact where these split."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect, expect_count, expect_key
from localhessian._brief import by_value
from localhessian._types import Array, Float, Key
from localhessian.curvature._local_hessian import local_hessian
from localhessian.curvature._scalars import check_scalar
from localhessian.linalg import (
    Hutchinson,
    Lanczos,
    Structured,
    SymmetricOperator,
    TraceEstimate,
    range_mean,
    spectrum,
    trace,
)
from localhessian.network import SIDES, BackMatching, Wrt


@by_value
class LocalScalars(NamedTuple):
    """One number for each local Hessian, in the order of the chain; 1 for a side that does not exist."""

    weights: Float[Array, " B"]
    """m_{b,W}."""
    inputs: Float[Array, " B"]
    """m_{b,z}; that of the first block is not used by any algorithm."""
    exact_weights: Array
    """(B,): whether m_{b,W} is exact up to rounding, or an estimate."""
    exact_inputs: Array
    """(B,): the same of m_{b,z}."""


def local_scalars(
    matching: BackMatching,
    scalar: str = "mean",
    *,
    probes: int = 32,
    key: Key | None = None,
) -> LocalScalars:
    """The scalars m_W and m_z of every block (Gauss-Newton parts, whole batch) that scale-amended SGD divides by.

    Exact where `lh.Structured` finds something (layers with what follows them per channel, last blocks with a softmax)
    and where a matrix is no larger than `probes`; else estimates by products.

    Args:
        matching: From `lh.back_match`.
        scalar: `mean` = tr(H) / dimension, the multiple of I nearest to H; `range_mean` = tr(H^2) / tr(H); `max` =
            lambda_max (from below where it is no more than an estimate).
        probes: Random vectors of an estimate.
        key: Of these vectors; default `jax.random.key(0)`.

    Returns:
        What `scale_by_local_hessian` takes as `update(.., scalars=)` in place of its own estimates. Needs numbers: call
        it between compiled steps, as often as the scalars are to be refreshed.

    Raises:
        ValueError: There is no such scalar.

    Cost: Gram matrices of every block (for `max` its spectrum), or `probes` products with each.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z * w)), lh.Block("b", lambda w, z: 10 * z * w)])
        >>> params, x = {"a": jnp.array([1.0]), "b": jnp.array([2.0])}, jnp.array([[0.5], [1.0]])
        >>> loss = lambda z, y: 0.5 * ((z - y) ** 2).sum(1)
        >>> found = lh.local_scalars(lh.back_match(chain, params, x, x, loss))
        >>> print(found.weights.shape, bool(found.exact_weights.all()))
        (2,) True

    Source: docs/theory.md, 5.
    """
    expect("matching", matching, BackMatching, "what `lh.back_match` returns for one batch")
    expect_key(key)
    check_scalar(scalar)
    expect_count("probes", probes, 3 if scalar == "range_mean" else 2)
    key = jax.random.key(0) if key is None else key
    values: dict[Wrt, list[Any]] = {wrt: [] for wrt in SIDES}
    exact: dict[Wrt, list[bool]] = {wrt: [] for wrt in SIDES}
    for b, block in enumerate(matching.chain.blocks):
        for wrt, kind in SIDES.items():
            value, is_exact = 1.0, True
            if kind(block).variables(matching.place(block.name))[0]:
                operator = local_hessian(matching, block.name, wrt)
                value, is_exact = _scalar(operator, scalar, probes, jax.random.fold_in(key, b))
            values[wrt].append(value)
            exact[wrt].append(is_exact)
    numbers = [jnp.stack([jnp.asarray(value, jnp.result_type(float)) for value in values[wrt]]) for wrt in values]
    return LocalScalars(*numbers, *(np.asarray(exact[wrt]) for wrt in exact))


def _scalar(operator: SymmetricOperator, scalar: str, probes: int, key: Key) -> tuple[Any, bool]:
    """By structure, else by products."""
    try:
        if scalar == "max":
            return spectrum(operator, Structured()).lambda_max, True
        estimate = _figure(operator, scalar, Structured())
    except ValueError:  # `Structured` declines
        if scalar == "max":
            found = spectrum(operator, Lanczos(which="largest", k=1), key=key)
            return found.lambda_max, bool(found.complete)
        estimate = _figure(operator, scalar, Hutchinson(probes), key)
    # Without any curvature, tr(H) = 0.
    return jnp.nan_to_num(estimate.value), estimate.exact


def _figure(
    operator: SymmetricOperator, scalar: str, method: Hutchinson | Structured, key: Key | None = None
) -> TraceEstimate:
    if scalar == "range_mean":
        return range_mean(operator, method, key=key)
    estimate = trace(operator, method, key=key)
    return dataclasses.replace(estimate, value=estimate.value / operator.size)
