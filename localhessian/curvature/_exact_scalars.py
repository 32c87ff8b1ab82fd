"""The scalars of all blocks of a network, from their local Hessians as operators: exact where these split."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect, expect_count, expect_key
from localhessian._brief import by_value
from localhessian._tree import array_of, on_the_host
from localhessian._types import Array, Float, Key
from localhessian.curvature._local_hessian import local_hessian
from localhessian.curvature._scalars import check_scalar
from localhessian.curvature._streamed import coupling
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
from localhessian.network import SIDES, BackMatching, StreamMatching, Wrt


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
    matching: BackMatching | StreamMatching,
    scalar: str = "mean",
    *,
    probes: int = 32,
    key: Key | None = None,
) -> LocalScalars:
    """The scalars m_W and m_z of every block (Gauss-Newton parts, whole batch) that scale-amended SGD divides by.

    Exact where `lh.Structured` finds something (layers with what follows them per channel, last blocks with a softmax)
    and where a matrix is no larger than `probes`; else estimates by products.

    Args:
        matching: From `lh.back_match`; of a stream too. H_z of all its samples is block diagonal, a block for each
            batch, which are looked at one after the other.
        scalar: `mean` = tr(H) / dimension, the multiple of I nearest to H; `range_mean` = tr(H^2) / tr(H); `max` =
            lambda_max (from below where it is no more than an estimate).
        probes: Random vectors of an estimate.
        key: Of these vectors; default `jax.random.key(0)`.

    Returns:
        What `scale_by_local_hessian` takes as `update(.., scalars=)` in place of its own estimates. Needs numbers: call
        it between compiled steps, as often as the scalars are to be refreshed.

    Raises:
        ValueError: There is no such scalar; a block couples the samples of a stream's batches.

    Cost: Gram matrices of every block (for `max` its spectrum), or `probes` products with each. Of a stream a pass for
    each Gram matrix and product of H_W, and one for all H_z.

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
    expect("matching", matching, (BackMatching, StreamMatching), "what `lh.back_match` returns")
    expect_key(key)
    check_scalar(scalar)
    expect_count("probes", probes, 3 if scalar == "range_mean" else 2)
    key = jax.random.key(0) if key is None else key
    sides = [(block.name, wrt) for block in matching.chain.blocks for wrt in SIDES]
    there = [side for side in sides if _exists(matching, *side)]
    if isinstance(matching, BackMatching):
        found = _of_batch(matching, there, scalar, probes, key)
    else:
        found = _of_batch(matching, [side for side in there if side[1] == "params"], scalar, probes, key)
        found |= _of_inputs(matching, [side for side in there if side[1] == "input"], scalar, probes, key)
    values, exact = ([found.get(side, (1.0, True))[i] for side in sides] for i in (0, 1))
    dtype = jnp.result_type(float)
    xp, values = on_the_host(values)
    of_sides = xp.stack([xp.asarray(value, dtype) for value in values]).reshape(-1, len(SIDES)).T
    return LocalScalars(*(array_of(part, dtype) for part in of_sides), *np.reshape(exact, (-1, len(SIDES))).T)


Found = dict[tuple[str, Wrt], tuple[Any, bool]]
"""By block and side, the scalar and whether it is exact."""


def _exists(matching: BackMatching | StreamMatching, block: str, wrt: Wrt) -> bool:
    kind = SIDES[wrt](matching.chain.blocks[matching.chain.index(block)])
    return bool(kind.variables(matching.place(block))[0])


def _of_batch(matching: Any, sides: Sequence[tuple[str, Wrt]], scalar: str, probes: int, key: Key) -> Found:
    """Of a batch; of a stream by H_W."""
    found: Found = {}
    for block, wrt in sides:
        operator = local_hessian(matching, block, wrt)
        found[block, wrt] = _scalar(operator, scalar, probes, jax.random.fold_in(key, matching.chain.index(block)))
    return found


def _of_inputs(matching: StreamMatching, sides: Sequence[tuple[str, Wrt]], scalar: str, probes: int, key: Key) -> Found:
    """Of a stream, by H_z: what is said of the blocks on a diagonal.

    Raises:
        ValueError: A batch couples its samples.
    """
    refused = [] if matching.stream.per_batch else [coupling(matching, *side, "gauss_newton") for side in sides]
    for why in filter(None, refused):
        raise ValueError(why)
    told: dict[tuple[str, Wrt], list[tuple[Any, bool, Any]]] = {side: [] for side in sides}
    for i, one in enumerate(matching.matchings(len(matching.chain))):
        of_batch = jax.random.fold_in(key, i)
        for side, (value, is_exact) in _of_batch(one, sides, scalar, probes, of_batch).items():
            share = _share(local_hessian(one, *side), scalar, probes, of_batch)
            told[side].append((value, is_exact, share))
    found: Found = {}
    for side, parts in told.items():
        numbers, exact, shares = zip(*parts, strict=True)
        found[side] = max(numbers) if scalar == "max" else _mean(numbers, shares), all(exact)
    return found


def _mean(numbers: Sequence[Any], shares: Sequence[Any]) -> Any:
    xp, (numbers, shares) = on_the_host((numbers, shares))
    total = sum(shares)
    return sum(s * m for s, m in zip(shares, numbers, strict=True)) / xp.where(total > 0, total, 1)


def _share(operator: SymmetricOperator, scalar: str, probes: int, key: Key) -> Any:
    """What a block's scalar counts among others on a diagonal: its dimension, or its trace."""
    if scalar != "range_mean":
        return operator.size
    return operator.size * _scalar(operator, "mean", probes, key)[0]


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
    xp, value = on_the_host(estimate.value)
    # Without any curvature, tr(H) = 0.
    return xp.nan_to_num(value if scalar == "range_mean" else value / operator.size), estimate.exact


def _figure(
    operator: SymmetricOperator, scalar: str, method: Hutchinson | Structured, key: Key | None = None
) -> TraceEstimate:
    return (range_mean if scalar == "range_mean" else trace)(operator, method, key=key)
