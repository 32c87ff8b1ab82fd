"""The answer to "what are the eigenvalues?", with everything needed to judge it."""

import jax.numpy as jnp

from localhessian._tree import pytree, static
from localhessian._types import Array, Float, Int


@pytree
class Spectrum:
    """Eigenvalues of a symmetric operator of order `size`, or of A^T A of a linear map A.

    A batched operator gives every array a leading axis `s`. Values are ascending. Slots that hold no value (an
    iteration that ended early under jit) stand at the end with multiplicity 0 and value NaN.
    """

    eigenvalues: Float[Array, "*s k"]
    """Ascending; of iterative methods, Ritz values."""
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
    random_start: bool = static(default=True)
    """Whether the Krylov start was random; probability statements need it."""
    ends: str = static(default="both")
    """Which ends of the spectrum the method sought: both, largest or smallest."""

    @property
    def converged(self) -> Array:
        """Boolean, one for each operator: status is CONVERGED."""
        return self.status == 0

    @property
    def lambda_max(self) -> Float[Array, "*s"]:
        """The largest eigenvalue returned."""
        return jnp.nanmax(self.eigenvalues, axis=-1)

    @property
    def lambda_min(self) -> Float[Array, "*s"]:
        """The smallest eigenvalue returned."""
        return jnp.nanmin(self.eigenvalues, axis=-1)
