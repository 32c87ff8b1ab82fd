"""Every eigenvalue of matrices that split into small blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._status import Status
from localhessian._tree import is_concrete
from localhessian._types import Array, Key
from localhessian.linalg._block_diagonal import BlockDiagonal
from localhessian.linalg._dense import ROUNDING
from localhessian.linalg._dependence import Declined
from localhessian.linalg._discover import Found, walk
from localhessian.linalg._khatri_rao import KhatriRao
from localhessian.linalg._operators import LinearMap, SymmetricOperator
from localhessian.linalg._spectrum import Spectrum

Structure = BlockDiagonal | KhatriRao


@dataclasses.dataclass(frozen=True)
class Structured:
    """All eigenvalues, with multiplicities, of an operator whose factor R splits into small blocks.

    The structure is found in the traced product v -> R v itself: the variables enter by one dot product or convolution,
    and what follows keeps channels (or samples) apart: activations, batch normalization in either mode, biases,
    scales, max pooling, a skip around. Then H is block diagonal, and each block is decomposed on its smaller side, from
    its Gram matrix in float64 (R in float64: by singular values of the block). Where what follows mixes channels of
    one sample only (a softmax loss), the rows of R are Kronecker products, and R R^T is cheap. A random vector
    confirms what was found against the operator's own product before it is used; where anything else is met, the
    route is declined with its reason (`lh.explain`).

    Cost: one walk through the linearized block on the host; Gram matrices of O(m p min(m, p)) operations and
    decompositions of O(min(m, p)^3), one for each different block of m results and p variables. Products: 1.
    Memory: the unfolded inputs A (places x d_in), and one block. Needs numbers: not under `jax.jit`.

    Args:
        max_size: Largest order of a matrix to decompose.
        max_bytes: Of memory. Patches of images that would take a quarter of it stay folded: their rows are unfolded
            anew for each block, some thousands at a time.
        max_operations: Multiplications that are affordable; 5e11 are about 20 seconds on one core.

    Source: docs/theory.md, 3; Dangel et al. (2019) and Grosse & Martens (2016) for the Kronecker structure of layers.
    """

    max_size: int = 4096
    max_bytes: float = 2**31
    max_operations: float = 5e11

    def find(self, operator: LinearMap | SymmetricOperator) -> Structure:
        """The structure, verified by a random vector and within the limits; `Declined` where there is none."""
        factor = operator if isinstance(operator, LinearMap) else operator.factor
        if factor is None:
            raise Declined("it has no factor R with H = R^T R")
        if not is_concrete(operator, jnp.zeros(())):
            raise Declined("its numbers are not known while JAX traces it")
        prepared = factor.prepare()
        found, structure = self._walk(prepared)
        if not structure.splits:
            raise Declined("nothing in it splits")
        _verify(found, prepared)
        self._check(structure)
        return structure

    def _walk(self, prepared: LinearMap) -> tuple[Found, Structure]:
        try:
            found = walk(prepared, True, self.max_bytes / 4)
            return found, BlockDiagonal(found, prepared.in_size, prepared.batch)
        except Declined:
            if prepared.batch is not None:
                raise
            try:
                found = walk(prepared, False, self.max_bytes / 4)
                eps = float(jnp.finfo(prepared.dtype).eps)
                return found, KhatriRao(found, prepared.in_size, eps, self.max_bytes)
            except Declined:
                pass
            raise

    def _check(self, structure: Structure) -> None:
        operations = sum(structure.operations())
        for name, needed in (
            ("max_size", structure.order),
            ("max_bytes", structure.bytes()),
            ("max_operations", operations),
        ):
            if needed > getattr(self, name):
                limit = f"`{name}` = {getattr(self, name):.3g}"
                raise Declined(f"it has one ({structure}), but {limit} is less than the {needed:.3g} needed")

    def run(
        self, operator: LinearMap | SymmetricOperator, key: Key, vectors: int, start: Array | None = None
    ) -> Spectrum:
        """The whole spectrum; `key` and `start` are not used."""
        del key, start
        if vectors:
            raise ValueError("`Structured` returns no eigenvectors: use `GolubKahan(...)`, or ask for `vectors=0`.")
        return self.decompose(self.require(operator), operator.dtype, operator.batch)

    def require(self, operator: LinearMap | SymmetricOperator) -> Structure:
        """The structure; ValueError where there is none."""
        try:
            return self.find(operator)
        except Declined as reason:
            raise ValueError(
                f"`Structured` declines {operator.label or 'the operator'}: {reason}. Use another method."
            ) from None

    def decompose(self, structure: Structure, dtype: jnp.dtype, batch: int | None) -> Spectrum:
        """The spectrum of a structure that was found."""
        parts = list(structure.parts(jnp.dtype(dtype) == jnp.float64))
        rows = []
        for b in range(batch or 1):
            mine = [part for part in parts if part.batch == b]
            sigma = np.concatenate([np.zeros(0), *(part.singular_values for part in mine)])
            copies = [np.full(len(part.singular_values), part.copies) for part in mine]
            rows.append(_merged(sigma, np.concatenate([np.zeros(0, np.int64), *copies]), structure.size))
        return _spectrum(rows, structure.size, dtype, batch, str(self))


def _merged(sigma: np.ndarray, copies: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending, all zeros in one slot; variables that nothing uses are zeros too."""
    nonzero = sigma > 0
    order = np.argsort(sigma[nonzero])
    values, counts = sigma[nonzero][order], copies[nonzero][order]
    zeros = size - int(counts.sum())
    if zeros:
        values, counts = np.concatenate([[0.0], values]), np.concatenate([[zeros], counts])
    return values, counts


def _spectrum(rows, size: int, dtype: jnp.dtype, batch: int | None, method: str) -> Spectrum:
    slots = max(len(values) for values, _ in rows)
    padded = [np.pad(values, (0, slots - len(values)), constant_values=np.nan) for values, _ in rows]
    sigma, copies = np.stack(padded), np.stack([np.pad(counts, (0, slots - len(counts))) for _, counts in rows])
    if batch is None:
        sigma, copies = sigma[0], copies[0]
    rho = ROUNDING * float(jnp.finfo(dtype).eps) * np.nanmax(sigma, axis=-1, keepdims=True) * np.ones_like(sigma)
    # Shapes follow the data (how many values are zero, or equal), so nothing here may compile.
    numbers = [jax.device_put(value.astype(dtype)) for value in (sigma**2, (2 * sigma + rho) * rho, sigma, rho)]
    lead = () if batch is None else (batch,)
    return Spectrum(
        eigenvalues=numbers[0],
        multiplicities=jax.device_put(copies.astype(np.int32)),
        residual_norms=numbers[1],
        vectors=None,
        singular_values=numbers[2],
        singular_residual_norms=numbers[3],
        status=jnp.full(lead, int(Status.CONVERGED), jnp.int32),
        complete=jnp.ones(lead, bool),
        matvecs=jnp.asarray(1, jnp.int32),
        size=size,
        dtype=dtype,
        method=method,
        missing=jnp.zeros(lead, dtype),
    )


def _verify(found: Found, prepared: LinearMap) -> None:
    """Compare R v of one random vector with the operator's own.

    The walk either follows a program exactly or declines, so a difference above rounding means that it was mistaken.

    Raises:
        Declined: they differ.
    """
    shape = (prepared.in_size,) if prepared.batch is None else (prepared.batch, prepared.in_size)
    v = np.random.default_rng(0).standard_normal(shape)
    product = np.asarray(prepared.mv(jnp.asarray(v, prepared.dtype)), np.float64).ravel()
    error = np.linalg.norm(found.apply(v.ravel()) - product)
    if not error <= float(jnp.finfo(prepared.dtype).eps) ** 0.5 * np.linalg.norm(product):
        raise Declined("a random vector did not confirm what was found (or the product is not finite)")
