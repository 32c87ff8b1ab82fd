"""What a row of a report says, as arrays: for many networks in one program."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax

from localhessian._arguments import expect_key
from localhessian._tree import is_concrete
from localhessian._types import Activations, Array, Context, Key, Loss, Params
from localhessian.analysis._asked import chosen, jobs_of, missing, nothing
from localhessian.analysis._measurement import Entry, Measurement
from localhessian.analysis._survey import examined, named
from localhessian.analysis._together import figures_together
from localhessian.analysis.rows import Key as RowKey
from localhessian.curvature import Part
from localhessian.linalg import Method, check_method
from localhessian.network import SIDES, BackMatching, Chain, Wrt, back_match, check_chain


def measure(
    chain: Chain,
    params: dict[str, Params],
    x: Activations,
    y: Any,
    loss: Loss,
    context: Context = None,
    *,
    blocks: str | Iterable[str] | None = None,
    wrt: Wrt | Iterable[Wrt] = tuple(SIDES),
    part: Part | Iterable[Part] = "gauss_newton",
    samples: int | Sequence[int] | Array | None = None,
    samples_per_block: int = 16,
    method: Method | None = None,
    key: Key | None = None,
) -> Measurement:
    """The figures of every local Hessian as a pytree of arrays: works under `jax.jit` and `jax.vmap`, and without.

    On numbers its figures are those of `lh.analyze`. Under transformations there is no choice by numbers, and on other
    devices than the CPU no float64 beside float32: small ends are less exact, which their intervals and statuses tell.

    Args:
        chain: The network.
        params: The parameters of each block by its name.
        x: Inputs, samples on the leading axis; outside of transformations also an `lh.Stream`.
        y: What the loss compares with; None beside a stream.
        loss: Per-sample losses, shape `(n,)`.
        context: Handed to every block that takes one.
        blocks: A name or names of the blocks to measure; default all, but of blocks without parameters no H_z.
        wrt: `"params"` for H_W, `"input"` for H_z, or both. What does not exist has no entry.
        part: `"gauss_newton"`, `"full"`, `"residual"`, or several.
        samples: For an uncoupled H_z, which samples: indices or a boolean mask. Under transformations a block couples
            its samples unless its program proves that it keeps them apart: a coupled H_z is one matrix of the batch.
        samples_per_block: Without `samples`, how many, evenly spaced.
        method: As in `lh.spectrum`. None takes the whole spectrum where there is structure or the matrix is small (8e10
            multiplications; under transformations 1e10), else the largest eigenvalue and a quadrature for the rest.
        key: Of random start vectors; default `jax.random.key(0)`.

    Returns:
        An entry for each block, side and part. A figure that is not known is NaN, and the status then is not CONVERGED
        where kappa_plus is the one: BUDGET_SPENT if only its lower bound was sought.

    Raises:
        ValueError: Bad input, as from `lh.back_match`; an unknown side or part; nothing of what was asked for exists;
            a method that cannot work on this operator, or not under transformations.
        KeyError: A block name that is not in the chain.

    Cost: one `lh.back_match`, and one `lh.spectrum` for each entry.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: z @ w), lh.Block("b", lambda w, z: z @ w)])
        >>> x, y = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.zeros((2, 1))
        >>> def kappa(scale):
        ...     params = {"a": jnp.diag(jnp.array([1.0, scale])), "b": jnp.ones((2, 1))}
        ...     found = lh.measure(chain, params, x, y, lambda z, y: 0.5 * ((z - y) ** 2).sum(1))
        ...     return found["a", "input"].kappa_plus
        >>> print(jax.jit(jax.vmap(kappa))(jnp.array([1.0, 2.0, 3.0])).round(3))
        [1. 4. 9.]
    """
    check_chain(chain, params)
    expect_key(key)
    check_method(method)
    jobs = jobs_of(chain, blocks, wrt, part)
    key = jax.random.key(0) if key is None else key
    matching = back_match(chain, params, x, y, loss, context)
    ones = chosen(samples, samples_per_block, matching.samples)
    why = {job: missing(matching, job[0], SIDES[job[1]], asked=blocks is not None) for job in jobs}
    there = [job for job in jobs if not why[job]]
    if not there:
        raise ValueError(nothing(why.values()))
    return measured(matching, there, ones, method, key)


def measured(
    matching: BackMatching,
    jobs: Sequence[RowKey],
    ones: tuple[int, ...],
    method: Method | None,
    key: Key,
) -> Measurement:
    """Of local Hessians that exist, in numbers of a stream too.

    `ones`: the samples looked at one by one where a block keeps them apart.
    """
    asked = [(job, ones if SIDES[job[1]].per_sample and not _is_coupled(matching, job[0]) else None) for job in jobs]
    found = examined(matching, asked, method, key)
    entries = tuple(
        Entry(
            *job,
            whole.size,
            matching.samples if samples is None else len(samples),
            _is_coupled(matching, job[0]),
            named(whole, rest),
        )
        for (job, samples), (whole, rest) in zip(asked, found, strict=True)
    )
    return Measurement(figures_together(found), entries)


def _is_coupled(matching: BackMatching, block: str) -> bool:
    """Where that is not known, it may be."""
    coupled = matching.coupled[block]
    return bool(coupled) if is_concrete(coupled) else True
