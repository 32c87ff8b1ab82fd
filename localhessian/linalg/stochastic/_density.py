"""Spectral densities by stochastic quadrature, with the error of the probes and that of the quadrature apart.

Why not matfree, which has the recurrences: its step count is fixed, so a start that spans a small invariant space
(the identity, the zero matrix) may end in NaN; its loop is always compiled, which is slow around
convolutions on the CPU; it takes one function at a time and tells no quadrature error. Compiled whole it is faster on
small explicit matrices. Its XTrace tests the rank by an absolute threshold, so that small operators get wrong traces
with tiny error bars. `benchmarks/densities.py` shows all of it.
"""

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect_choice, expect_count, expect_flag, expect_key, expect_share, number, short
from localhessian._mesh import everywhere, is_traced
from localhessian._programs import compiled, full_precision, is_eager
from localhessian._status import REFUSED, Status, quietly
from localhessian._tree import array_of, is_concrete, to_device
from localhessian._types import Array, Key
from localhessian.linalg.krylov import HOST, TRACED, Arithmetic, on_the_host, runs_whole, told_apart
from localhessian.linalg.operators import Operator, check_operator, contradiction, rounding, unbatched
from localhessian.linalg.spectra import Jacobi, Spectrum, SpectrumError
from localhessian.linalg.stochastic._axis import Axis
from localhessian.linalg.stochastic._distribution import Density, QuadratureEstimate
from localhessian.linalg.stochastic._jacobi import of_factor, of_symmetric
from localhessian.linalg.stochastic._quadrature import bracket, bracket_within, ends


def spectral_density(
    operator: Operator | Spectrum,
    /,
    *,
    axis: Literal["linear", "log"] = "linear",
    bins: int = 64,
    limits: tuple[float, float] | None = None,
    probes: int = 16,
    steps: int = 48,
    rtol: float | None = None,
    key: Key | None = None,
    throw: bool = True,
) -> Density:
    """How eigenvalues are distributed, by stochastic quadrature, without computing them.

    F(x) = (number of eigenvalues at or below x) / d = E v^T 1[H <= x] v for random unit vectors v

    Of each of `probes` random v, `steps` steps of Lanczos (where there is a factor R: of Golub-Kahan on its smaller
    side, so that nothing is squared and the small end stands on its own) know the first moments of v's spectral
    measure. Gauss-Radau rules with these moments bound the cumulative distribution of v from both sides at every
    point; the estimate is the middle of the bounds, averaged over the probes. It has two errors, reported apart:

    - *quadrature*: half the distance of the bounds, which shrinks as 1/steps inside a dense bulk and much faster
      around isolated eigenvalues; a bound, up to rounding, not a standard error;
    - *probe*: the standard error over the random start vectors, which shrinks as 1/sqrt(probes * d).

    Eigenvalues count by multiplicity, though each start sees every distinct one once. A start whose space becomes
    invariant has an exact rule. Full reorthogonalization.

    Of a complete `Spectrum` the density is exact. One that an iteration made from a single random vector (`Lanczos`; of
    a factor `GolubKahan(which="largest")`) is such a recurrence already: it tells what its steps before the first
    restart know, without a product. `min_matvecs` and `basis_size` of the method make them enough.

    Args:
        operator: Any operator; of a linear map A the density of A^T A; or a spectrum.
        axis: `"linear"`: density per unit lambda. `"log"`: per unit log10(lambda), of the eigenvalues above the cutoff;
            zero and negative ones are counted apart on both.
        bins: How many of equal width (on the axis).
        limits: Eigenvalues that the axis begins and ends with; default: the extreme Ritz values with a margin (on the
            log axis, the extreme ones above the cutoff).
        probes: Random start vectors, at least 2 for an error bar of their own; of a spectrum without use.
        steps: Of each recurrence, at most (the operator's smaller side ends it); of a spectrum without use.
        rtol: Relative cutoff for "zero" on singular values, as in `lh.condition_number`.
        key: Of the start vectors; default `jax.random.key(0)`.
        throw: Whether to raise where the numbers mean nothing. Under `jax.jit` only `status` tells.

    Returns:
        The density in bins with its cumulative distribution, quantiles and errors. Works under `jax.jit` and
        `jax.vmap`.

    Raises:
        SpectrumError: Products are not finite, not symmetric (of a linear map: not each other's transpose), or differ
            when repeated.
        ValueError: a setting has no meaning, or the spectrum is neither complete nor from a random start.

    Cost: nothing of a spectrum; else `probes * steps` products, up to 8 in one batched call, and 3 for the probe;
    memory `steps * (d + m)` numbers for each start that runs at once.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> diagonal = jnp.array([0.0, 0.0, 1.0, 10.0])
        >>> spectrum = lh.spectrum(lh.symmetric_operator(lambda v: diagonal * v, 4))
        >>> found = lh.spectral_density(spectrum, axis="log", bins=2, limits=(0.5, 50.0))
        >>> print(found.zero.value, found.density.value.round(3), found.cumulative.value)
        0.5 [0.25 0.25] [0.5  0.75 1.  ]

    Source: S. Ubaru, J. Chen and Y. Saad, SIAM J. Matrix Anal. Appl. 38 (2017) 1075; the bounds: T. Chen, T. Trogdon
    and S. Ubaru, ICML (2021).
    """
    if not isinstance(operator, Spectrum):
        check_operator(operator)
    expect_key(key)
    expect_flag("throw", throw)
    _check(axis, bins, limits, probes, steps, rtol)
    scale = Axis(axis, bins, limits, rtol)
    if isinstance(operator, Spectrum):
        return _of_spectrum(operator, scale)
    wrong = contradiction(operator) if throw else None
    if wrong is not None:
        raise SpectrumError(f"{operator.label or 'the operator'}: {wrong.message}")
    found = _run(operator, jax.random.key(0) if key is None else key, probes, steps, scale)
    if throw and is_concrete(found.status):
        codes = np.ravel(found.status)
        if codes.any():
            worst = Status(int(codes[codes != 0][0]))
            raise SpectrumError(f"{operator.label or 'the operator'}: {worst.message}")
    return found


def _check(
    axis: str, bins: int, limits: tuple[float, float] | None, probes: int, steps: int, rtol: float | None
) -> Any:
    expect_choice("axis", axis, ("linear", "log"))
    for name, value, least in (("bins", bins, 1), ("probes", probes, 2), ("steps", steps, 1)):
        expect_count(name, value, 0)
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    if limits is not None and not _is_pair(limits):
        raise TypeError(f"`limits` must be two finite numbers, got {short(limits)}.")
    if limits is not None and not limits[0] < limits[1]:
        raise ValueError(f"`limits` must ascend, got {limits}.")
    if limits is not None and axis == "log" and limits[0] <= 0:
        raise ValueError(
            f"`limits` must be positive on the log axis, got {limits}: zero eigenvalues are counted apart."
        )
    if rtol is not None:
        expect_share("rtol", rtol)


def _is_pair(limits: Any) -> bool:
    return (
        isinstance(limits, tuple | list | np.ndarray)
        and len(limits) == 2
        and all(found is not None and math.isfinite(found) for found in map(number, limits))
    )


def _run(operator: Operator, key: Key, probes: int, steps: int, scale: Axis) -> Density:
    """On the host with NumPy around compiled products, or compiled whole: as the Krylov methods do."""
    if is_traced(operator, key):
        if is_eager():
            return _compiled(operator.prepare(), key, probes, steps, scale)
        with full_precision():
            return _compute(operator, key, probes, steps, scale, TRACED)
    if runs_whole(operator):
        return told_apart(everywhere(_compiled(operator.prepare(), key, probes, steps, scale)), operator)
    try:
        with quietly(), on_the_host(operator):
            return told_apart(_compute(operator, key, probes, steps, scale, HOST), operator)
    except jax.errors.TracerArrayConversionError:
        # The operator closes over traced values, which shows when it multiplies.
        return _compute(operator, key, probes, steps, scale, TRACED)


def _compute(operator: Operator, key: Key, probes: int, steps: int, scale: Axis, on: Arithmetic) -> Density:
    factor, size = operator.factor, operator.size
    if factor is None:
        order, steps = size, min(steps, size)
        jacobi, status = of_symmetric(operator.symmetric, key, probes, steps, on)
    else:
        # On the smaller side: the null space that the shape makes certain is not left to chance.
        narrow = factor.T if factor.out_size < factor.in_size else factor
        order, steps = narrow.in_size, min(steps, narrow.in_size)
        jacobi, status = of_factor(narrow, key, probes, steps, on)
    of = _Of(operator.batch, operator.dtype, factor is not None, order, size, probes, steps)
    return _of_jacobi(jacobi, status, of, scale, on.xp)


class _Of(NamedTuple):
    """What a density is of, and by how much."""

    batch: int | None
    dtype: Any
    has_factor: bool
    order: int
    """Of its smaller side."""
    size: int
    probes: int
    """0 of a complete spectrum."""
    steps: int
    made: bool = True
    """Whether the steps were made for it."""


def _of_spectrum(spectrum: Spectrum, scale: Axis) -> Density:
    """The exact density of a complete spectrum; else by what its iteration knows of a random start."""
    known, is_known = spectrum.jacobi, is_concrete(spectrum.complete)
    batch = None if spectrum.eigenvalues.ndim == 1 else spectrum.eigenvalues.shape[0]
    has_factor, order = spectrum.singular_values is not None, spectrum.start_size
    steps = 0 if known is None else known.off.shape[-1] // (2 if has_factor else 1)
    # In a program only a run that may have seen the whole space can be complete.
    if known is None or (np.asarray(spectrum.complete).all() if is_known else steps >= order):
        return _exact(spectrum, batch, scale)
    xp: Any = np if is_concrete(spectrum) else jnp
    wide = np.float64 if xp is np else known.off.dtype
    jacobi: Jacobi = jax.tree.map(lambda part: xp.asarray(part, wide).reshape(1, batch or 1, -1), known)
    status = xp.atleast_1d(xp.asarray(spectrum.status))
    refused = xp.isin(status, xp.asarray([int(code) for code in REFUSED], dtype=status.dtype))
    of = _Of(batch, spectrum.dtype, has_factor, order, spectrum.size, 1, steps, made=False)
    return _of_jacobi(jacobi, xp.where(refused, status, 0), of, scale, xp)


def _of_jacobi(jacobi: Jacobi, status: Any, of: _Of, scale: Axis, xp: ModuleType) -> Density:
    """By coefficients `(p, s, N)` of random starts, of operators with a status `(s,)`."""
    usable = (status == 0)[None, :, None]
    diagonal, off = (xp.where(usable, part, 0) for part in (jacobi.diagonal, jacobi.off))
    nodes, errors, weights = ends(diagonal, off, xp)
    # v^T H v and |H v|^2 of the starts.
    first, second = (off[..., :1] ** 2, off[..., :1] * off[..., 1:2]) if of.has_factor else (diagonal, off)
    moments = first[..., 0], first[..., 0] ** 2 + second[..., 0] ** 2
    relative = scale.relative_cutoff(of.dtype, of.has_factor)
    nonzero = _nonzero(nodes, xp.where(weights > 0, errors, xp.inf), relative, of.dtype, of.has_factor, xp)
    if of.has_factor:
        sigma = xp.max(nodes, axis=(0, 2))
        nodes, errors = xp.maximum(nodes, 0) ** 2, (2 * xp.abs(nodes) + errors) * errors
        limits = jnp.finfo(of.dtype)
        lost = (sigma > 0) & ~((sigma > float(limits.tiny) ** 0.5) & (sigma < float(limits.max) ** 0.5))
        status = xp.where(lost & (status == 0), int(Status.OUT_OF_RANGE), status)
    at = xp.argmax(nodes[..., -1], axis=0)[None]
    largest, error = (xp.take_along_axis(part[..., -1], at, 0)[0] for part in (nodes, errors))
    tiny = float(jnp.finfo(of.dtype).tiny)
    cutoff = relative * xp.max(xp.abs(nodes), axis=(0, 2)) + tiny
    above = xp.where(nodes > cutoff[None, :, None], nodes, xp.inf) if scale.axis == "log" else nodes
    edges = scale.edges(xp.min(above, axis=(0, 2)), largest, cutoff, xp)
    points = scale.points(edges, cutoff, xp)
    if of.has_factor:
        bounds = bracket_within(off, xp.sqrt(xp.maximum(points, 0)), xp)
        lower, upper = (xp.where(points[None] >= 0, bound, 0) for bound in bounds)
    else:
        lower, upper = bracket(diagonal, off, points, xp)
    fourth = xp.sum(weights * (nodes / _positive(largest, xp)[None, :, None]) ** 4, axis=-1)
    fourth = fourth * (2 if of.has_factor else 1)
    parts = lower, upper, (*moments, fourth), edges, cutoff, nonzero, largest, error, status
    return _density(parts, of, scale, xp)


def _nonzero(nodes: Any, errors: Any, relative: float, dtype: Any, has_factor: bool, xp: ModuleType) -> Any:
    """The smallest eigenvalue known to be at or below a value above the cutoff, (s,), from Ritz values."""
    # Of a factor these are singular values, and their mirror images.
    scale = xp.max(xp.abs(nodes), axis=(0, 2))[None, :, None]
    errors = errors + rounding(dtype) * scale
    cutoff = (relative**0.5 if has_factor else relative) * scale
    smallest = xp.min(xp.where(nodes - errors > cutoff, nodes + errors, xp.inf), axis=(0, 2))
    return smallest**2 if has_factor else smallest


_compiled: Callable[..., Density] = compiled(partial(_compute, on=TRACED), static_argnums=(2, 3, 4))


def _density(parts: Any, of: _Of, scale: Axis, xp: ModuleType) -> Density:
    """The result from bounds `(p, s, 2 + tail + edges)` at minus the cutoff, the cutoff, the tail and the edges.

    The bounds are those of a space of `order` dimensions; the `size - order` others are certain to be null. The moments
    are v^T H v, v^T H^2 v and, relative to the largest eigenvalue, v^T H^4 v of the starts.
    """
    lower, upper, moments, edges, cutoff, nonzero, largest, error, status = parts
    batch, dtype, _, order, size, probes, steps, made = of
    known = xp.where(status == 0, 1, xp.nan).astype(edges.dtype)
    width = xp.diff(xp.log10(edges) if scale.axis == "log" else edges, axis=1)
    certain = xp.where(edges >= 0, 1 - order / size, 0)

    def arrays(value: Any) -> Array:
        return array_of(unbatched(value, batch), dtype)

    def standard_error(forms: Any, squares: Any, mean: Any) -> Any:
        if not probes:
            return xp.zeros_like(mean)
        return _standard_error(forms, 2 * xp.maximum(squares - mean**2, 0) / (order + 2), xp)

    def probe_error(shares: Any, low: Any, high: Any) -> Any:
        # The share that, within the bounds, varies most.
        share = xp.clip(0.5, *(xp.clip(xp.mean(part, axis=0), 0, 1) for part in (low, high)))
        return standard_error(shares, share, share)

    def estimate(low: Any, high: Any, certain: Any, unit: Any) -> QuadratureEstimate:
        middle, half = (low + high) / 2, xp.maximum(high - low, 0) / 2
        share = xp.mean(middle, axis=0)
        value, parts = certain + order / size * share, (probe_error(middle, low, high), xp.mean(half, axis=0))
        finite = known.reshape(-1, *(1,) * (share.ndim - 1)) / unit
        return QuadratureEstimate(arrays(value * finite), *(arrays(part * finite * (order / size)) for part in parts))

    (mean, square, fourth), share = (xp.mean(part, axis=0) for part in moments), order / size
    top = _positive(largest, xp)
    # By their own scale, and with the largest, which is one of them though a start may have missed it.
    first, second = moments[0] / top[None], moments[1] / top[None] ** 2
    doubt = standard_error(first, xp.maximum(square / top**2, 1 / order), mean / top) * top
    square_doubt = standard_error(second, xp.maximum(fourth, 1 / order), square / top**2) * top**2
    tail = scale.tail(edges, cutoff, xp)
    start = 2 + tail.shape[1]
    low, high = lower[:, :, start:], upper[:, :, start:]
    return Density(
        edges=arrays(edges),
        density=estimate(low[..., 1:] - high[..., :-1], high[..., 1:] - low[..., :-1], xp.diff(certain, axis=1), width),
        cumulative=estimate(low, high, certain, 1),
        tail=arrays(tail),
        tail_cumulative=estimate(lower[:, :, 2:start], upper[:, :, 2:start], 1 - order / size, 1),
        negative=estimate(lower[..., 0], upper[..., 0], 0, 1),
        zero=estimate(lower[..., 1] - upper[..., 0], upper[..., 1] - lower[..., 0], 1 - order / size, 1),
        mean=QuadratureEstimate(*(arrays(part * share * known) for part in (mean, doubt, xp.zeros_like(mean)))),
        mean_square=QuadratureEstimate(
            *(arrays(part * share * known) for part in (square, square_doubt, xp.zeros_like(square)))
        ),
        nonzero=arrays(nonzero * known),
        cutoff=arrays(cutoff),
        largest=arrays(largest * known),
        largest_error=arrays(error * known),
        status=array_of(unbatched(status, batch), np.int32),
        matvecs=to_device(probes * steps if made else 0, np.int32),
        axis=scale.axis,
        size=size,
        probes=probes,
        steps=steps,
        exact=probes == 0,
    )


def _positive(scale: Any, xp: ModuleType) -> Any:
    return xp.where(scale > 0, scale, 1)


def _standard_error(forms: Any, floor: Any, xp: ModuleType) -> Any:
    """Of the mean of quadratic forms v^T A v of the starts, `(p, ...)`, whose variance is known to be `floor`.

    Of a random direction it is 2 (mean of alpha^2 - (mean of alpha)^2) / (order + 2), alpha the eigenvalues of A. Few
    starts show less than that by chance, and one shows nothing.
    """
    variance = floor if len(forms) == 1 else xp.maximum(xp.var(forms, axis=0, ddof=1), floor)
    return xp.sqrt(variance / len(forms))


def _exact(spectrum: Spectrum, batch: int | None, scale: Axis) -> Density:
    """The density of a complete spectrum."""
    if is_concrete(spectrum.complete) and not np.asarray(spectrum.complete).all():
        raise ValueError(
            "the spectrum is not complete, so its values have no shares, and no recurrence from a random start tells "
            "them: pass the operator instead."
        )
    xp: Any = np if is_concrete(spectrum) else jnp
    values, counts, status, complete = (
        xp.asarray(part)[None] if batch is None else xp.asarray(part)
        for part in (spectrum.eigenvalues, spectrum.multiplicities, spectrum.status, spectrum.complete)
    )
    counts = counts.astype(values.dtype)
    values = xp.where(counts > 0, values, 0)
    scale_of = xp.max(xp.abs(values), axis=1)
    relative = scale.relative_cutoff(spectrum.dtype, spectrum.singular_values is not None)
    cutoff = relative * scale_of + float(jnp.finfo(spectrum.dtype).tiny)
    low = xp.where(counts > 0, values, xp.inf)
    low = xp.where(values > cutoff[:, None], low, xp.inf) if scale.axis == "log" else low
    largest = xp.max(xp.where(counts > 0, values, -xp.inf), axis=1)
    edges = scale.edges(xp.min(low, axis=1), largest, cutoff, xp)
    points = scale.points(edges, cutoff, xp)
    below = values[:, None, :] <= points[:, :, None]
    shares = xp.sum(xp.where(below, counts[:, None, :], 0), axis=2)[None] / spectrum.size
    # Values that are not all may have converged.
    status = xp.where(complete, 0, xp.where(status == 0, int(Status.BUDGET_SPENT), status)).astype(np.int32)
    shares = xp.where(complete[None, :, None], shares, xp.nan)
    nonzero = xp.min(xp.where(values > cutoff[:, None], values, xp.inf), axis=1)
    moments = tuple(xp.sum(values**power * counts, axis=1)[None] / spectrum.size for power in (1, 2))
    without = xp.zeros_like(largest)
    parts = shares, shares, (*moments, without[None]), edges, cutoff, nonzero, largest, without, status
    of = _Of(batch, spectrum.dtype, spectrum.singular_values is not None, spectrum.size, spectrum.size, 0, 0)
    return _density(parts, of, scale, xp)
