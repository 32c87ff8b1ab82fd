"""One block of a matrix that splits, and its Gram matrix in float64."""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import numpy as np
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


class Entries(NamedTuple):
    """Some entries of a matrix, none twice, row by row."""

    row: np.ndarray
    column: np.ndarray
    value: np.ndarray

    def add_to(self, out: np.ndarray, start: int, first: int = 0) -> None:
        """Add them to a part of the matrix, of the rows from `start` and the columns from `first`."""
        some = slice(*np.searchsorted(self.row, (start, start + len(out))))
        out[self.row[some] - start, self.column[some] - first] += self.value[some]


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
    single: list[Entries]
    """Of (m, p): the single variables; the first d columns are the product's."""
    elements: np.ndarray
    """(m,): which results of the whole map its rows are."""
    variables: np.ndarray
    """(p,): which variables of the whole map its columns are."""
    copies: int
    batch: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of R_j."""
        return len(self.elements), len(self.variables)

    @property
    def order(self) -> int:
        """Of the matrix to decompose."""
        return min(self.shape)

    @functools.cached_property
    def is_separate(self) -> bool:
        """Whether no single variable is also one of the product's, so that Gram matrices add."""
        return all(np.all(entries.column >= self.inputs.shape[1]) for entries in self.single)

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows of R_j in float64."""
        part = slice(start, stop)
        mixed = self.inputs.take(self.place[part])
        mixed *= self.own[part, None]
        if len(self.weights):
            mixed += self.shared[part] @ self.sums
        beside = self.shape[1] - mixed.shape[1]
        out = np.concatenate([mixed, np.zeros((len(mixed), beside))], axis=1) if beside else mixed
        for entries in self.single:
            entries.add_to(out, start)
        return out

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
        out = of_inputs * self.own if everywhere else of_inputs[self.place][:, self.place] * self.own
        out *= self.own[:, None]
        d = self.inputs.shape[1]
        beside = np.zeros((len(out), self.shape[1] - d))
        for entries in self.single:
            entries.add_to(beside, 0, d)
        left, right = [beside], [beside]
        if len(self.weights):
            through = of_inputs @ self.weights.T  # A A^T rho
            # B S^T + S B^T with sums S: own A A^T rho, and half of the sums' own rho^T A A^T rho.
            half = self.own[:, None] * through[self.place] + self.shared @ (self.weights @ through) / 2
            left, right = [*left, half, self.shared], [*right, self.shared, half]
        out += np.concatenate(left, axis=1) @ np.concatenate(right, axis=1).T
        return cast(np.ndarray, out)


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
