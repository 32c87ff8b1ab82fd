"""One block of a matrix that splits, and its Gram matrix in float64."""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import numpy as np
from scipy import sparse
from scipy.linalg import blas

from localhessian.linalg.structure._inputs import CHUNK, Inputs
from localhessian.linalg.structure._lapack import SMALL, eigenvalues


class Part(NamedTuple):
    """The spectrum of one block."""

    singular_values: np.ndarray
    """Of R_j, as many as it has columns (but for zeros)."""
    copies: int | np.ndarray
    """How many equal blocks there are; of many small ones, for each value."""
    batch: int
    """To which of a batch of maps they belong."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """One block R_j = (diag(own) A[place] + shared sums, 0) + single; rows that are zero are left out."""

    inputs: Inputs
    """A, (places, d)."""
    own: np.ndarray
    """(m,)."""
    place: np.ndarray
    """(m,)."""
    shared: np.ndarray
    """(m, sums)."""
    weights: np.ndarray
    """(sums, places)."""
    sums: np.ndarray
    """weights A, (sums, d)."""
    single: sparse.csr_matrix
    """(m, p): the single variables; the first d columns are the product's."""
    elements: np.ndarray
    """(m,): which results of the whole map its rows are."""
    variables: np.ndarray
    """(p,): which variables of the whole map its columns are."""
    copies: int
    batch: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of R_j."""
        return cast(tuple[int, int], self.single.shape)

    @property
    def order(self) -> int:
        """Of the matrix to decompose."""
        return min(self.shape)

    @functools.cached_property
    def is_separate(self) -> bool:
        """Whether no single variable is also one of the product's, so that Gram matrices add."""
        return bool(self.single[:, : self.inputs.shape[1]].nnz == 0)

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows of R_j in float64."""
        part = slice(start, stop)
        out = self.single[part].toarray()
        mixed = self.inputs.take(self.place[part])
        mixed *= self.own[part, None]
        if len(self.weights):
            mixed += self.shared[part] @ self.sums
        out[:, : mixed.shape[1]] += mixed
        return cast(np.ndarray, out)

    def gram(self, of_inputs: np.ndarray | None = None) -> np.ndarray:
        """The upper triangle of the smaller of R_j R_j^T and R_j^T R_j; `of_inputs` is A A^T where it is at hand."""
        m, p = self.shape
        if of_inputs is not None and m < p and self.is_separate:
            return self._dual(of_inputs)
        if m < p:
            return syrk(self.rows())
        return gram_of_rows(self.rows, m, p)

    def _dual(self, of_inputs: np.ndarray) -> np.ndarray:
        everywhere = len(self.place) == len(of_inputs) and bool(np.all(np.diff(self.place) == 1))
        out = of_inputs * self.own if everywhere else of_inputs[np.ix_(self.place, self.place)] * self.own
        out *= self.own[:, None]
        if len(self.weights):
            through = of_inputs @ self.weights.T  # A A^T rho
            cross = (self.own[:, None] * through[self.place]) @ self.shared.T
            out += cross + cross.T + self.shared @ (self.weights @ through) @ self.shared.T
        return cast(np.ndarray, out + (self.single @ self.single.T).toarray() if self.single.nnz else out)


def singular_values(units: list[Unit], of_inputs: np.ndarray | None, is_double: bool) -> np.ndarray:
    """Of units of one shape (units, columns), ascending; numbers that are float64 themselves are not squared."""
    order, columns = units[0].order, units[0].shape[1]
    sigma = np.zeros((len(units), columns))
    if is_double and order:
        sigma[:, columns - order :] = np.linalg.svd(np.stack([u.rows() for u in units]), compute_uv=False)[:, ::-1]
    elif order >= SMALL:
        for row, unit in zip(sigma, units, strict=True):
            row[columns - order :] = roots(unit.gram(of_inputs))
    elif order:
        sigma[:, columns - order :] = roots(np.stack([unit.gram(of_inputs) for unit in units]))
    return sigma


def syrk(rows: np.ndarray) -> np.ndarray:
    """The upper triangle of R R^T; BLAS refuses an R without rows."""
    return blas.dsyrk(1.0, np.asfortranarray(rows)) if rows.size else np.zeros((len(rows), len(rows)))


def gram_of_rows(rows: Any, count: int, order: int) -> np.ndarray:
    """The upper triangle of R^T R, a chunk of rows at a time."""
    out = np.zeros((order, order), order="F")
    for start in range(0, count, CHUNK):
        out = blas.dsyrk(1.0, rows(start, start + CHUNK).T, beta=1.0, c=out, overwrite_c=True)
    return out


def roots(gram: np.ndarray) -> np.ndarray:
    """The square roots of the eigenvalues of Gram matrices (*, n, n), from their upper triangles; overwrites them."""
    return cast(np.ndarray, np.sqrt(np.maximum(eigenvalues(gram), 0)))


def squares_of(gram: np.ndarray) -> tuple[float, float]:
    """Trace and squared Frobenius norm, from the upper triangle."""
    upper, diagonal = np.triu(gram), np.diagonal(gram)
    return float(diagonal.sum()), float(2 * np.sum(upper**2) - np.sum(diagonal**2))
