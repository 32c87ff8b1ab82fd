"""Spectral densities by stochastic quadrature, with the error of the probes and that of the quadrature apart.

Why not matfree, which has the recurrences: its step count is fixed, so a start that spans a small invariant space
(the identity, the zero matrix) may end in NaN; its loop is always compiled, which is slow around
convolutions on the CPU; it takes one function at a time and tells no quadrature error. Compiled whole it is faster on
small explicit matrices. Its XTrace tests the rank by an absolute threshold, so that small operators get wrong traces
with tiny error bars. `benchmarks/densities.py` shows all of it.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect_choice, expect_count, expect_flag, expect_key, expect_share, number, short
from localhessian._mesh import everywhere, is_traced
from localhessian._programs import compiled, full_precision
from localhessian._status import Status, quietly
from localhessian._tree import is_concrete
from localhessian._types import Array, Key
from localhessian.linalg.krylov import HOST, TRACED, Arithmetic, runs_whole, told_apart
from localhessian.linalg.operators import Operator, check_operator, contradiction, rounding, unbatched
from localhessian.linalg.spectra import Spectrum, SpectrumError, counted
from localhessian.linalg.stochastic._distribution import Density, QuadratureEstimate
from localhessian.linalg.stochastic._jacobi import of_factor, of_symmetric
from localhessian.linalg.stochastic._quadrature import bracket, bracket_within, ends

TAIL = 8
"""Points between the cutoff and a logarithmic axis: what quantile condition numbers may reach down to."""
MARGIN = 0.02
"""The default axis reaches that share of its length beyond the extreme Ritz values, which lie within the spectrum."""


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
    invariant has an exact rule. Full reorthogonalization. A complete `Spectrum` gives the exact density instead.

    Args:
        operator: Any operator; of a linear map A the density of A^T A; or a complete spectrum.
        axis: `"linear"`: density per unit lambda. `"log"`: per unit log10(lambda), of the eigenvalues above the cutoff;
            zero and negative ones are counted apart on both.
        bins: How many of equal width (on the axis).
        limits: Eigenvalues that the axis begins and ends with; default: the extreme Ritz values with a margin (on the
            log axis, the extreme ones above the cutoff).
        probes: Random start vectors, at least 2 for an error bar.
        steps: Of each recurrence, at most (the operator's smaller side ends it).
        rtol: Relative cutoff for "zero" on singular values, as in `lh.condition_number`.
        key: Of the start vectors; default `jax.random.key(0)`.
        throw: Whether to raise where the numbers mean nothing. Under `jax.jit` only `status` tells.

    Returns:
        The density in bins with its cumulative distribution, quantiles and errors. Works under `jax.jit` and
        `jax.vmap`.

    Raises:
        SpectrumError: Products are not finite, not symmetric (of a linear map: not each other's transpose), or differ
            when repeated.
        ValueError: a setting has no meaning, or the spectrum is not complete.

    Cost: `probes * steps` products, up to 8 in one batched call, and 3 for the probe; memory `steps * (d + m)` numbers
    for each start that runs at once.

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
    scale = _Axis(axis, bins, limits, rtol)
    if isinstance(operator, Spectrum):
        return _exact(operator, scale)
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
        and all(math.isfinite(math.nan if number(limit) is None else float(limit)) for limit in limits)
    )


@dataclasses.dataclass(frozen=True)
class _Axis:
    """The settings of the result."""

    axis: str
    bins: int
    limits: tuple[float, float] | None
    rtol: float | None

    def relative_cutoff(self, dtype: Any, has_factor: bool) -> float:
        """The rank rule's cutoff on eigenvalues, relative to the largest."""
        return counted(dtype, has_factor, self.rtol) ** 2

    def edges(self, low: Any, high: Any, cutoff: Any, xp: ModuleType) -> Any:
        """Edges of the bins, `(s, bins + 1)`, for spectra that reach from `low` to `high`, `(s,)`."""
        places = xp.asarray(np.linspace(0, 1, self.bins + 1), dtype=cutoff.dtype)[None, :]
        if self.limits is not None:
            low, high = (xp.full_like(cutoff, limit) for limit in self.limits)
        elif self.axis == "log":
            # What is at the cutoff is uncertain; a spectrum without a positive value gets an axis all the same.
            high = xp.where(high > cutoff, high, 10 * cutoff)
            low = xp.maximum(xp.where(xp.isfinite(low), low, high / 10), cutoff)
            ratio = xp.maximum((high / low) ** MARGIN, 1 + 2 * MARGIN)
            low, high = xp.maximum(low / ratio, cutoff), high * ratio
        else:
            margin = xp.maximum(MARGIN * (high - low), 2 * MARGIN * xp.maximum(xp.abs(low), xp.abs(high)))
            margin = xp.where(margin > 0, margin, 1)
            low, high = low - margin, high + margin
        low, high = low[:, None], high[:, None]
        return low * (high / low) ** places if self.axis == "log" else low + (high - low) * places

    def tail(self, edges: Any, cutoff: Any, xp: ModuleType) -> Any:
        """Points below the first edge of a logarithmic axis, `(s, TAIL)`; none of a linear one."""
        if self.axis == "linear":
            return edges[:, :0]
        places = xp.asarray(np.arange(1, TAIL + 1) / (TAIL + 1), dtype=cutoff.dtype)[None, :]
        low = cutoff[:, None]
        return low * xp.maximum(edges[:, :1] / low, 1) ** places

    def points(self, edges: Any, cutoff: Any, xp: ModuleType) -> Any:
        """Where the distribution is looked at: minus the cutoff, the cutoff, the tail, the edges."""
        return xp.concatenate([-cutoff[:, None], cutoff[:, None], self.tail(edges, cutoff, xp), edges], axis=1)


def _run(operator: Operator, key: Key, probes: int, steps: int, scale: _Axis) -> Density:
    """On the host with NumPy around compiled products, or compiled whole: as the Krylov methods do."""
    if is_traced(operator, key):
        with full_precision():
            return _compute(operator, key, probes, steps, scale, TRACED)
    if runs_whole(operator):
        return told_apart(everywhere(_compiled(operator.prepare(), key, probes, steps, scale)), operator)
    try:
        with quietly():
            return told_apart(_compute(operator, key, probes, steps, scale, HOST), operator)
    except jax.errors.TracerArrayConversionError:
        # The operator closes over traced values, which shows when it multiplies.
        return _compute(operator, key, probes, steps, scale, TRACED)


def _compute(operator: Operator, key: Key, probes: int, steps: int, scale: _Axis, on: Arithmetic) -> Density:
    xp, factor, size = on.xp, operator.factor, operator.size
    if factor is None:
        order, steps = size, min(steps, size)
        jacobi = of_symmetric(operator.symmetric, key, probes, steps, on)
    else:
        # On the smaller side: the null space that the shape makes certain is not left to chance.
        narrow = factor.T if factor.out_size < factor.in_size else factor
        order, steps = narrow.in_size, min(steps, narrow.in_size)
        jacobi = of_factor(narrow, key, probes, steps, on)
    status = jacobi.status
    usable = (status == 0)[None, :, None]
    diagonal, off = (xp.where(usable, part, 0) for part in (jacobi.diagonal, jacobi.off))
    nodes, errors, weights = ends(diagonal, off, xp)
    # v^T H v and |H v|^2 of the starts.
    first, second = (diagonal, off) if factor is None else (off[..., :1] ** 2, off[..., :1] * off[..., 1:2])
    moments = first[..., 0], first[..., 0] ** 2 + second[..., 0] ** 2
    relative = scale.relative_cutoff(operator.dtype, factor is not None)
    nonzero = _nonzero(nodes, xp.where(weights > 0, errors, xp.inf), relative, operator.dtype, factor is not None, xp)
    if factor is not None:
        sigma = xp.max(nodes, axis=(0, 2))
        nodes, errors = xp.maximum(nodes, 0) ** 2, (2 * xp.abs(nodes) + errors) * errors
        limits = jnp.finfo(operator.dtype)
        lost = (sigma > 0) & ~((sigma > float(limits.tiny) ** 0.5) & (sigma < float(limits.max) ** 0.5))
        status = xp.where(lost & (status == 0), int(Status.OUT_OF_RANGE), status)
    at = xp.argmax(nodes[..., -1], axis=0)[None]
    largest, error = (xp.take_along_axis(part[..., -1], at, 0)[0] for part in (nodes, errors))
    tiny = float(jnp.finfo(operator.dtype).tiny)
    cutoff = relative * xp.max(xp.abs(nodes), axis=(0, 2)) + tiny
    above = xp.where(nodes > cutoff[None, :, None], nodes, xp.inf) if scale.axis == "log" else nodes
    edges = scale.edges(xp.min(above, axis=(0, 2)), largest, cutoff, xp)
    points = scale.points(edges, cutoff, xp)
    if factor is None:
        lower, upper = bracket(diagonal, off, points, xp)
    else:
        bounds = bracket_within(off, xp.sqrt(xp.maximum(points, 0)), xp)
        lower, upper = (xp.where(points[None] >= 0, bound, 0) for bound in bounds)
    parts = lower, upper, moments, edges, cutoff, nonzero, largest, error, status
    return _density(parts, operator.batch, operator.dtype, scale, (order, size), (probes, steps), xp)


def _nonzero(nodes: Any, errors: Any, relative: float, dtype: Any, has_factor: bool, xp: ModuleType) -> Any:
    """The smallest eigenvalue known to be at or below a value above the cutoff, (s,), from Ritz values."""
    # Of a factor these are singular values, and their mirror images.
    scale = xp.max(xp.abs(nodes), axis=(0, 2))[None, :, None]
    errors = errors + rounding(dtype) * scale
    cutoff = (relative**0.5 if has_factor else relative) * scale
    smallest = xp.min(xp.where(nodes - errors > cutoff, nodes + errors, xp.inf), axis=(0, 2))
    return smallest**2 if has_factor else smallest


_compiled: Callable[..., Density] = compiled(partial(_compute, on=TRACED), static_argnums=(2, 3, 4))


def _density(
    parts: Any,
    batch: int | None,
    dtype: Any,
    scale: _Axis,
    sizes: tuple[int, int],
    run: tuple[int, int],
    xp: ModuleType,
) -> Density:
    """The result from bounds `(p, s, 2 + tail + edges)` at minus the cutoff, the cutoff, the tail and the edges.

    The bounds are those of a space of `order` dimensions; the `size - order` others are certain to be null.
    """
    lower, upper, moments, edges, cutoff, nonzero, largest, error, status = parts
    (order, size), (probes, steps) = sizes, run
    known = xp.where(status == 0, 1, xp.nan).astype(edges.dtype)
    width = xp.diff(xp.log10(edges) if scale.axis == "log" else edges, axis=1)
    certain = xp.where(edges >= 0, 1 - order / size, 0)

    def arrays(value: Any) -> Array:
        return jnp.asarray(unbatched(value, batch), dtype)

    def estimate(low: Any, high: Any, certain: Any, unit: Any) -> QuadratureEstimate:
        middle, half = (low + high) / 2, xp.maximum(high - low, 0) / 2
        share = xp.mean(middle, axis=0)
        value, parts = certain + order / size * share, (_probe_error(middle, share, order, xp), xp.mean(half, axis=0))
        finite = known.reshape(-1, *(1,) * (share.ndim - 1)) / unit
        return QuadratureEstimate(arrays(value * finite), *(arrays(part * finite * (order / size)) for part in parts))

    mean, share = xp.mean(moments[0], axis=0), order / size
    doubt = _mean_error(moments, mean, order, xp)
    square, square_doubt = xp.mean(moments[1], axis=0), _standard_error(moments[1], xp)
    tail = scale.tail(edges, cutoff, xp)
    first = 2 + tail.shape[1]
    low, high = lower[:, :, first:], upper[:, :, first:]
    return Density(
        edges=arrays(edges),
        density=estimate(low[..., 1:] - high[..., :-1], high[..., 1:] - low[..., :-1], xp.diff(certain, axis=1), width),
        cumulative=estimate(low, high, certain, 1),
        tail=arrays(tail),
        tail_cumulative=estimate(lower[:, :, 2:first], upper[:, :, 2:first], 1 - order / size, 1),
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
        status=jnp.asarray(unbatched(status, batch), np.int32),
        matvecs=jnp.asarray(probes * steps),
        axis=scale.axis,
        size=size,
        probes=probes,
        steps=steps,
        exact=probes == 0,
    )


def _probe_error(shares: Any, mean: Any, order: int, xp: ModuleType) -> Any:
    """Standard error of the mean of shares `(p, ...)`.

    The weight of a random direction in an eigenspace of share f has a Beta distribution of variance
    2 f (1 - f) / (order + 2). Few probes show less than that by chance, so it is a floor.
    """
    if len(shares) == 1:
        return xp.zeros_like(mean)
    within = xp.clip(mean, 0, 1)
    variance = xp.maximum(xp.var(shares, axis=0, ddof=1), 2 * within * (1 - within) / (order + 2))
    return xp.sqrt(variance / len(shares))


def _mean_error(moments: Any, mean: Any, order: int, xp: ModuleType) -> Any:
    """Standard error of the mean eigenvalue from the first two moments of the starts `(p, s)`.

    v^T H v of a random direction has the variance 2 (mean of lambda^2 - mean^2) / (order + 2): a floor, as there.
    """
    forms, squares = moments
    if len(forms) == 1:
        return xp.zeros_like(mean)
    floor = 2 * xp.maximum(xp.mean(squares, axis=0) - mean**2, 0) / (order + 2)
    return xp.sqrt(xp.maximum(xp.var(forms, axis=0, ddof=1), floor) / len(forms))


def _standard_error(values: Any, xp: ModuleType) -> Any:
    """Of the mean over the starts `(p, s)`."""
    return xp.zeros_like(values[0]) if len(values) == 1 else xp.std(values, axis=0, ddof=1) / len(values) ** 0.5


def _exact(spectrum: Spectrum, scale: _Axis) -> Density:
    """The density of a complete spectrum."""
    if is_concrete(spectrum.complete) and not np.all(spectrum.complete):
        raise ValueError("the spectrum is not complete, so its values have no shares: pass the operator instead.")
    batch = None if spectrum.eigenvalues.ndim == 1 else len(spectrum.eigenvalues)
    xp: Any = np if is_concrete(spectrum) else jnp
    values, counts, status, complete = (
        xp.asarray(part)[None] if batch is None else xp.asarray(part)
        for part in (spectrum.eigenvalues, spectrum.multiplicities, spectrum.status, spectrum.complete)
    )
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
    shares = xp.sum(xp.where(below, counts[:, None, :], 0), axis=2)[None].astype(values.dtype) / spectrum.size
    status = xp.where(complete, 0, status).astype(np.int32)
    shares = xp.where(complete[None, :, None], shares, xp.nan)
    nonzero = xp.min(xp.where(values > cutoff[:, None], values, xp.inf), axis=1)
    moments = tuple(xp.sum(values**power * counts, axis=1)[None] / spectrum.size for power in (1, 2))
    parts = shares, shares, moments, edges, cutoff, nonzero, largest, xp.zeros_like(largest), status
    return _density(parts, batch, spectrum.dtype, scale, (spectrum.size, spectrum.size), (0, 0), xp)
