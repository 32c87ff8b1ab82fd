"""A second opinion on eigenvectors: residuals and orthogonality, recomputed in float64 on the host."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect, expect_here
from localhessian._brief import brief
from localhessian._status import quietly
from localhessian._tree import is_concrete, to_device
from localhessian.linalg.operators import Operator, SymmetricOperator, check_operator, eps_of
from localhessian.linalg.spectra import Spectrum

ROUNDING = 100
"""Products in the operator's dtype are trusted to ROUNDING * eps * max|lambda|."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """What the eigenvectors of a spectrum are worth; arrays of NumPy in float64, with the leading axis of a batch."""

    rayleigh_quotients: np.ndarray
    """v^T H v of the unit vectors, `(*s, k)`, ascending with the values that they belong to."""
    residual_norms: np.ndarray
    """||H v - lambda v|| with the eigenvalue that the spectrum states."""
    orthogonality: np.ndarray
    """The largest entry of |V^T V - I|."""
    tolerance: np.ndarray
    """The rounding that products in the operator's dtype are allowed."""
    agrees: np.ndarray
    """Whether every residual is within what the spectrum states and the tolerance, and the vectors are orthonormal."""

    __repr__ = brief


@quietly()
def audit(operator: Operator, spectrum: Spectrum, /) -> Audit:
    """Recompute residuals, Rayleigh quotients and orthogonality of a spectrum's eigenvectors.

    One fresh product for each vector and four for the norm, in the dtype of the operator; everything else in float64
    on the host.

    Args:
        operator: The operator (or linear map) whose spectrum it is.
        spectrum: With `vectors`: `lh.spectrum(operator, vectors=k)`.

    Returns:
        The recomputed figures, and whether they agree with what the spectrum states.

    Raises:
        ValueError: The spectrum has no vectors, or is of another size or batch.
        TypeError: Called under a transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> H = lh.symmetric_operator(lambda v: jnp.array([3.0, 1.0, 2.0]) * v, 3)
        >>> print(lh.audit(H, lh.spectrum(H, vectors=2)).agrees)
        True
    """
    check_operator(operator)
    expect("spectrum", spectrum, Spectrum, "a spectrum from `lh.spectrum`")
    symmetric = operator.symmetric
    _check(symmetric, spectrum)
    prepared = symmetric.prepare()
    columns = jnp.moveaxis(jnp.asarray(spectrum.vectors), -1, 0)
    V = np.moveaxis(np.asarray(columns, np.float64), 0, -1)
    HV = np.stack([np.asarray(prepared.mv(column), np.float64) for column in columns], axis=-1)
    norm = _norm(prepared)
    values, stated = _of_the_largest(spectrum, V.shape[-1], norm)
    norms = np.linalg.norm(V, axis=-2)
    quotients = np.sum(V * HV, axis=-2) / norms**2
    residuals = np.linalg.norm(HV - values[..., None, :] * V, axis=-2) / norms
    overlap = np.nan_to_num(np.swapaxes(V, -1, -2) @ V)
    gap = np.abs(overlap - np.eye(V.shape[-1]) * (overlap != 0)).max(axis=(-1, -2))
    eps = eps_of(symmetric.dtype)
    tolerance = ROUNDING * eps * norm
    missing = np.isnan(values) | np.isnan(norms)
    agrees = np.all(missing | (residuals <= stated + tolerance[..., None]), axis=-1) & (gap <= ROUNDING * eps)
    # Where no value was found, or products overflow, there is nothing to agree with.
    agrees &= np.any(~missing, axis=-1) & np.isfinite(norm)
    return Audit(quotients, residuals, gap, tolerance, agrees)


def _norm(prepared: SymmetricOperator, steps: int = 4) -> Any:
    """||H|| within a small factor, by the power method: the values at hand may be of the small end only."""
    lead = () if prepared.batch is None else (prepared.batch,)
    v = np.random.default_rng(0).standard_normal((*lead, prepared.size))
    for _ in range(steps):
        unit = to_device(v / np.linalg.norm(v, axis=-1, keepdims=True), prepared.dtype)
        v = np.asarray(prepared.mv(unit), np.float64)
        norm = np.linalg.norm(v, axis=-1)
        v = np.where(norm[..., None] > 0, v, 1)
    return norm


def _check(operator: SymmetricOperator, spectrum: Spectrum) -> None:
    expect_here("audit", operator, spectrum)
    if not is_concrete(operator, spectrum):
        raise TypeError("`audit` runs on the host, on numbers: call it outside `jax.jit` and `jax.vmap`.")
    if spectrum.vectors is None:
        raise ValueError("`audit` needs eigenvectors, and the spectrum has none: pass `vectors=k` to `lh.spectrum`.")
    lead = () if operator.batch is None else (operator.batch,)
    if spectrum.vectors.shape[:-1] != (*lead, operator.size):
        raise ValueError(
            f"`spectrum` has vectors of shape {spectrum.vectors.shape[:-1]}, and `operator` takes "
            f"{(*lead, operator.size)}: pass the operator that the spectrum was computed from."
        )


def _of_the_largest(spectrum: Spectrum, k: int, norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """The values that the vectors belong to, the k largest, ascending, and residual norms; empty slots stand last.

    With R v = sigma u + e and R^T u = sigma v + f is R^T R v - sigma^2 v = sigma f + R^T e.
    """
    filled = np.sum(np.asarray(spectrum.multiplicities) > 0, axis=-1)[..., None]
    places = filled - k + np.arange(k)
    values, stated = (np.asarray(a, np.float64) for a in (spectrum.eigenvalues, spectrum.residual_norms))
    if spectrum.singular_values is not None:
        size = np.asarray(spectrum.singular_values, np.float64) + np.sqrt(norm)[..., None]
        stated = np.asarray(spectrum.singular_residual_norms, np.float64) * size
    return np.take_along_axis(values, places, -1), np.take_along_axis(stated, places, -1)
