"""Quantities of a whole spectrum."""

from localhessian._arguments import expect
from localhessian._tree import on_the_host, pytree
from localhessian._types import Array, Float
from localhessian.linalg.spectra._rank import noise
from localhessian.linalg.spectra._spectrum import Spectrum


@pytree
class Summary:
    """Robust figures of a spectrum to compare matrices by; of a batched spectrum, arrays `(s,)`.

    On the host arrays of NumPy in float64, under transformations arrays of JAX in the spectrum's own dtype.
    """

    trace: Float[Array, "*s"]
    """The sum of the eigenvalues."""
    mean: Float[Array, "*s"]
    """The mean eigenvalue, trace / size."""
    stable_rank: Float[Array, "*s"]
    """||H||_F^2 / max|lambda|^2, between 1 and the rank."""
    effective_rank: Float[Array, "*s"]
    """trace / max|lambda|; of a semi-definite matrix between the stable rank and the rank."""
    negative_fraction: Float[Array, "*s"]
    """The share of eigenvalues below what rounding leaves, `-100 eps(dtype) max|lambda|` (16 bits: 4 eps)."""


def summarize(spectrum: Spectrum, /) -> Summary:
    """Trace, mean eigenvalue, stable and effective rank, and the fraction of negative eigenvalues.

    Args:
        spectrum: A complete one, from `lh.spectrum`.

    Returns:
        Figures of the whole spectrum, multiplicities counted; NaN where it is incomplete (`lh.trace` estimates the
        trace without a spectrum). The ranks of the zero matrix are NaN. Works under `jax.jit` and `jax.vmap`.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> diagonal = jnp.array([4.0, 2.0, 2.0, 0.0])
        >>> summary = lh.summarize(lh.spectrum(lh.symmetric_operator(lambda v: diagonal * v, 4)))
        >>> print(round(float(summary.trace), 4), round(float(summary.effective_rank), 4))
        8.0 2.0
    """
    expect("spectrum", spectrum, Spectrum, "a spectrum from `lh.spectrum`")
    xp, found = on_the_host(spectrum)
    counts = found.multiplicities.astype(found.eigenvalues.dtype)
    values = xp.where(found.multiplicities > 0, found.eigenvalues, 0)
    largest = xp.max(xp.abs(values), axis=-1)
    # Relative to the largest, so that the squares of vanishing or exploding signals are representable.
    relative = values / xp.where(largest > 0, largest, 1)[..., None]
    trace = xp.sum(counts * relative, axis=-1)
    squares = xp.sum(counts * relative**2, axis=-1)
    negative = xp.sum(xp.where(relative < -noise(spectrum.dtype), counts, 0), axis=-1)
    known = xp.where(found.complete, xp.ones_like(largest), xp.nan)
    ranked = xp.where(largest > 0, known, xp.nan)
    total = trace * largest * known
    size = xp.asarray(spectrum.size, total.dtype)
    return Summary(total, total / size, squares * ranked, trace * ranked, negative / size * known)
