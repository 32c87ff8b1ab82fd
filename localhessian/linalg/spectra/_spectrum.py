"""The answer to "what are the eigenvalues?", with everything needed to judge it."""

import dataclasses
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect_share
from localhessian._brief import brief, wrapped
from localhessian._status import Status, quietly
from localhessian._tree import array_of, is_concrete, pytree, static
from localhessian._types import Array, Float, Int
from localhessian.linalg.spectra._rank import cutoff


@pytree
class Jacobi:
    """The tridiagonal matrix that a recurrence makes of H, or of a factor R, from a random unit vector.

    Its moments are those of the vector's spectral measure. Of a factor it is that of [[0, R^T], [R, 0]] and (v, 0), v
    on the smaller side: its diagonal is zero, its measure lies evenly on plus and minus the singular values. Rows after
    a breakdown are decoupled.
    """

    diagonal: Float[Array, "*s N"]
    off: Float[Array, "*s N"]
    """`off[..., i]` couples rows i and i + 1; the last one is what a further step would be coupled by."""


@pytree
class Spectrum:
    """Eigenvalues of a symmetric operator of order `size`, or of A^T A of a linear map A.

    A batched operator gives every array a leading axis `s`. Values are ascending. Slots that hold no value (an
    iteration that ended early under jit) stand at the end with multiplicity 0 and value NaN.
    """

    eigenvalues: Float[Array, "*s k"]
    """Ascending; of iterative methods, Ritz values. In float32 at least, also of a narrower operator."""
    multiplicities: Int[Array, "*s k"]
    """How often each value counts; 0 marks an empty slot."""
    residual_norms: Float[Array, "*s k"]
    """||H v - lambda v|| of unit vectors, recomputed: some eigenvalue lies that near. Rounding level for exact methods.

    Of a linear map: the bound (2 sigma + rho) rho that the recomputed residual rho of the singular triplet implies.
    """
    vectors: Float[Array, "*s d k"] | None
    """Unit eigenvectors in columns, of the largest values returned, ascending; NaN in empty slots; None if unasked."""
    singular_values: Float[Array, "*s k"] | None
    """Of the factor R or the linear map A, ascending; None for an operator without a factor."""
    singular_residual_norms: Float[Array, "*s k"] | None
    """sqrt(||R v - sigma u||^2 + ||R^T u - sigma v||^2) of each triplet, recomputed: the error bound of sigma."""
    status: Int[Array, "*s"]
    """A `localhessian.Status` code, one for each operator."""
    complete: Array
    """Boolean, one for each operator: every eigenvalue is here, by dimension count."""
    matvecs: Int[Array, ""]
    """Products with H, or pairs of products with R and R^T, that were spent (batched products count once)."""
    size: int = static()
    """The order of the operator."""
    dtype: jnp.dtype = static()
    """Of the arithmetic that made the numbers: the rank rule's eps."""
    method: str = static()
    """How the values were computed, printable."""
    missing: Float[Array, "*s"]
    """No eigenvalue that is not here exceeds this in size: 0 of a complete spectrum; infinite where nothing is known.

    `lh.certify` lowers it by an exact trace or Frobenius norm.
    """
    krylov_steps: Int[Array, ""] | None = None
    """Block steps of the iteration before its first restart; None for exact methods."""
    start_size: int = static(default=0)
    """The dimension in which the start of an iteration was random; 0 where it was not: a warm start."""
    ends: str = static(default="both")
    """Which ends of the spectrum the method sought: both, largest or smallest."""
    norm: Float[Array, "*s"] | None = None
    """||R|| (without a factor: ||H||) is at least this, by the largest product seen; None where the values tell it."""
    jacobi: Jacobi | None = None
    """What the steps before the first restart know of all eigenvalues (`lh.spectral_density` tells it); None where they
    did not begin at one random vector of the whole space: exact methods, blocks, warm starts, small ends of a factor.
    """

    def __repr__(self) -> str:
        """Its order, range and status; no list of values."""
        if not is_concrete(self):
            return brief(self)
        counts = Counter(Status(int(code)).name for code in np.ravel(self.status))
        ended = ", ".join(name if n == np.size(self.status) else f"{n} {name}" for name, n in counts.items())
        times = f" x {np.shape(self.eigenvalues)[0]}" if np.ndim(self.eigenvalues) > 1 else ""
        with quietly():
            low, high = float(np.asarray(self.lambda_min).min()), float(np.asarray(self.lambda_max).max())
        whole = "complete" if np.asarray(self.complete).all() else "incomplete"
        return wrapped(
            f"Spectrum(order {self.size}: {np.shape(self.eigenvalues)[-1]}{times} values from {low:.3g} to {high:.3g}, "
            f"{ended}, {whole}; {self.method}, {int(self.matvecs)} products)"
        )

    @property
    def converged(self) -> Array:
        """Boolean, one for each operator: status is CONVERGED."""
        xp: Any = np if is_concrete(self.status) else jnp
        return array_of(xp.asarray(self.status) == 0)

    def failure_probability(self, relative_error: float = 0.1) -> Float[Array, "*s"]:
        """How probable it is, over random starts, that the largest eigenvalue was missed by more than this.

        Of a semi-definite operator: that lambda_max > lambda / (1 - relative_error), lambda the largest value returned.
        0 for exact methods and complete spectra; 1 (nothing is known) after a warm start. Iterations that were
        restarted count their first basis only.

        Source: J. Kuczynski and H. Wozniakowski, SIAM J. Matrix Anal. Appl. 13 (1992) 1094, theorem 4.2.
        """
        expect_share("relative_error", relative_error, closed=True)
        xp: Any = np if is_concrete(self.missing, self.krylov_steps, self.complete) else jnp
        unknown = xp.ones_like(xp.asarray(self.missing))
        if self.krylov_steps is not None and self.start_size:
            steps = xp.asarray(self.krylov_steps).astype(unknown.dtype)
            unknown = missed(self.start_size, steps, relative_error, xp) * unknown
        exact = xp.asarray(self.complete) | (self.krylov_steps is None)
        return array_of(xp.where(exact, 0, unknown).astype(unknown.dtype))

    def refused(self, status: Status) -> "Spectrum":
        """The same without values, for products that are not what they should be."""
        nothing: dict[str, Any] = {
            name: None if getattr(self, name) is None else jnp.full_like(getattr(self, name), jnp.nan)
            for name in ("eigenvalues", "residual_norms", "vectors", "singular_values", "singular_residual_norms")
        }
        return dataclasses.replace(
            self,
            **nothing,
            jacobi=jax.tree.map(lambda known: jnp.full_like(known, jnp.nan), self.jacobi),
            status=jnp.full_like(self.status, int(status)),
            complete=jnp.zeros_like(self.complete),
            missing=jnp.full_like(self.missing, jnp.inf),
        )

    @property
    def lambda_max(self) -> Float[Array, "*s"]:
        """The largest eigenvalue returned."""
        return self._extreme(-np.inf)

    @property
    def lambda_min(self) -> Float[Array, "*s"]:
        """The smallest eigenvalue returned."""
        return self._extreme(np.inf)

    def _extreme(self, least: float) -> Float[Array, "*s"]:
        """The value farthest from `least`; NaN where there is none. By NumPy, which compiles nothing, where it can."""
        xp = np if is_concrete(self.eigenvalues) else jnp
        values = xp.asarray(self.eigenvalues)
        there = ~xp.isnan(values)
        extreme = (xp.max if least < 0 else xp.min)(xp.where(there, values, values.dtype.type(least)), axis=-1)
        found = xp.where(xp.any(there, axis=-1), extreme, values.dtype.type(np.nan))
        return array_of(found)


def packed(
    values: Any,
    multiplicities: Any,
    errors: Any,
    *,
    of_factor: bool,
    status: Any,
    complete: Any,
    matvecs: Any,
    size: int,
    dtype: Any,
    method: str,
    vectors: Any = None,
    norm: Any = None,
    jacobi: Jacobi | None = None,
    **iteration: Any,
) -> Spectrum:
    """A spectrum of its numbers, arrays of NumPy (nothing is compiled) or of JAX.

    `values` are ascending eigenvalues, or, `of_factor`, singular values of R with H = R^T R, NaN in empty slots;
    `errors` residual norms of the same kind. An iterative method adds `krylov_steps`, `start_size` and `ends`.
    """
    wide = working_dtype(dtype)
    squares = (values**2, (2 * values + errors) * errors) if of_factor else (values, errors)
    eigenvalues, residuals = (array_of(part, wide) for part in squares)
    sigma, rho = (array_of(part, wide) if of_factor else None for part in (values, errors))
    xp = np if isinstance(complete, np.ndarray | np.bool_) else jnp
    return Spectrum(
        eigenvalues=eigenvalues,
        multiplicities=array_of(multiplicities, np.int32),
        residual_norms=residuals,
        vectors=None if vectors is None else array_of(vectors, wide),
        singular_values=sigma,
        singular_residual_norms=rho,
        status=array_of(status, np.int32),
        complete=array_of(complete, bool),
        matvecs=array_of(matvecs, np.int32),
        size=size,
        dtype=dtype,
        method=method,
        missing=array_of(xp.where(complete, 0, np.inf), wide),
        norm=None if norm is None else array_of(norm, wide),
        jacobi=jax.tree.map(lambda known: array_of(known, wide), jacobi),
        **iteration,
    )


def missed(size: int, steps: Any, relative_error: float, xp: Any) -> Any:
    """At most how probable it is that `steps` steps from a random start in `size` dimensions miss lambda_max."""
    return xp.minimum(1.648 * size**0.5 * xp.exp(-(relative_error**0.5) * (2 * steps - 1)), 1)


class SpectrumError(ArithmeticError):
    """A figure that means nothing: products that are not finite, not linear, not symmetric or not deterministic."""


class SpectrumInterrupt(KeyboardInterrupt):
    """A spectrum that was interrupted, with what it had found.

    With `vectors` asked for, `lh.spectrum(..., start=interrupt.spectrum.vectors)` goes on from there.
    """

    def __init__(self, spectrum: Spectrum) -> None:
        """Keep it."""
        super().__init__(f"interrupted after {int(spectrum.matvecs)} products; `.spectrum` holds what was found")
        self.spectrum = spectrum
        """Estimates with recomputed residuals and their status, as after a spent budget."""


def within_range(spectrum: Spectrum) -> Spectrum:
    """With the status OUT_OF_RANGE where non-zero eigenvalues are infinite or vanish in the dtype they are given in."""
    xp: Any = np if is_concrete(spectrum) else jnp
    values, residuals, counts, status = (
        xp.asarray(part)
        for part in (spectrum.eigenvalues, spectrum.residual_norms, spectrum.multiplicities, spectrum.status)
    )
    there = counts > 0
    lost = there & ~(xp.isfinite(values) & xp.isfinite(residuals))
    if spectrum.singular_values is not None:
        sigma = xp.where(there, xp.asarray(spectrum.singular_values), 0)
        above = sigma > cutoff(spectrum.dtype) * xp.max(sigma, axis=-1, keepdims=True)
        lost = lost | (above & (values < float(jnp.finfo(values.dtype).tiny)))
    out = xp.any(lost, axis=-1) & (status == 0)
    if xp is np and not out.any():
        return spectrum
    return dataclasses.replace(spectrum, status=jnp.asarray(xp.where(out, int(Status.OUT_OF_RANGE), status), jnp.int32))


def working_dtype(dtype: Any) -> Any:
    """Of bases and results: the operator's, or float32 where that is narrower."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype("float32")
