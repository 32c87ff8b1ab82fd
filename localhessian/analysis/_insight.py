"""What lies behind the top of an H_W, and what would change it: the mean of the layer's input, a channel, the gradient.

The numbers come from some products and from the second moments C = (1/N) sum a a^T of the layer's inputs a (patches of
a convolution; a bias appends a 1), which are those that enter H_W: without an activation behind the layer H_W = I x C.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from localhessian._blas import blas_threads
from localhessian._status import quietly
from localhessian._tree import floating_leaves
from localhessian.linalg import Grid, Operator, Spectrum, Structure, cutoff
from localhessian.network import BackMatching

STEPS = 12
"""Products, of a Lanczos process that starts with the gradient."""
FEW_STEPS = 8
"""The same where products are dear, and no direction is sought: for the shares of the gradient alone."""
TOP, BOTTOM = 0.1, 1e-3
"""Of the largest eigenvalue: what counts as top eigenspace, and as bottom eigenspace."""
ALONE = 0.5
"""Of the largest eigenvalue: one channel is told to carry it where no other eigenvalue is above this."""
SETTLED = 0.05
"""A share is told where it has changed by less over the last quarter of the steps."""
ACCURATE = 5e-3
"""Of the largest eigenvalue: with a Ritz value farther below it, or a larger residual, no direction is told."""
MAX_SIZE = 2**21
"""Variables above which the vectors of the process take too much memory."""
MAX_ORDER, MAX_OPERATIONS = 1024, 3e9
"""Of C, or of the Gram matrix of the inputs where that is smaller: its order, and multiplications."""


@quietly()
def insight(
    matching: BackMatching, block: str, operator: Operator, found: Spectrum, structure: Structure | None
) -> dict[str, Any]:
    """What can be said of the H_W of a block (Gauss-Newton part), by columns of a `Row`; nothing of what is not sure.

    Args:
        matching: The network at its point.
        block: Its name.
        operator: H_W.
        found: Its spectrum.
        structure: As `lh.Structured` found it; without one nothing is said of inputs and channels.
    """
    gradient = np.concatenate([np.ravel(leaf) for leaf in floating_leaves(matching.gradients[block])]).astype(
        np.float64
    )
    largest = float(np.max(np.asarray(found.lambda_max)))
    grid = None if structure is None or len(structure.grids) != 1 else structure.grids[0]
    # Threads of BLAS that wait for each other take ten times as long over matrices of these orders as one.
    with blas_threads(1):
        known: dict[str, Any] = {} if grid is None else moments(grid, cutoff(operator.dtype) ** 2)
    is_fit = operator.batch is None and operator.size <= MAX_SIZE and len(gradient) == operator.size
    if is_fit and np.isfinite(gradient).all() and gradient.any() and 0 < largest < np.inf:
        ready: Any = operator.prepare()
        steps = FEW_STEPS if grid is None else STEPS
        process = _Process(lambda v: np.asarray(ready.mv(v.astype(operator.dtype))), gradient, steps)
        known |= {
            "gradient_top": process.share(lambda values: values >= TOP * largest),
            "gradient_bottom": process.share(lambda values: values <= BOTTOM * largest),
        }
        vector = process.top(largest)
        if grid is not None and vector is not None:
            known |= _direction(grid, vector, found, largest)
    return known


class _Process:
    """The Lanczos process of H from one vector, every basis vector made orthogonal to all before it."""

    def __init__(self, multiply: Callable[[np.ndarray], np.ndarray], start: np.ndarray, steps: int) -> None:
        """Run it."""
        basis = np.zeros((steps, len(start)), np.float32)
        basis[0] = start / np.linalg.norm(start)
        self.tridiagonal = np.zeros((steps + 1, steps + 1))
        for k in range(steps):
            w = multiply(basis[k])
            for _ in range(2):
                coefficients = basis[: k + 1] @ w
                w = w - coefficients @ basis[: k + 1]
                self.tridiagonal[k, k] += coefficients[k]
            self.steps, beta = k + 1, float(np.linalg.norm(w))
            self.tridiagonal[k, k + 1] = self.tridiagonal[k + 1, k] = beta
            if beta <= 1e-5 * np.abs(self.tridiagonal).max():  # rounding: the space is invariant
                self.tridiagonal[k, k + 1] = self.tridiagonal[k + 1, k] = 0
                break
            if k + 1 < steps:
                basis[k + 1] = w / beta
        self.basis = basis[: self.steps]

    def share(self, of: Callable[[np.ndarray], np.ndarray]) -> float:
        """How much of the start lies in some eigenspaces, by Gauss quadrature; NaN where that has not settled.

        Source: Golub & Meurant (2010), Matrices, Moments and Quadrature, chapter 6.
        """
        shares = []
        for steps in (self.steps, self.steps if self._is_whole else self.steps - self.steps // 4):
            values, vectors = np.linalg.eigh(self.tridiagonal[:steps, :steps])
            shares.append(float(np.sum(vectors[0, of(values)] ** 2)))
        return shares[0] if abs(shares[0] - shares[1]) <= SETTLED else np.nan

    def top(self, largest: float) -> np.ndarray | None:
        """A unit vector of the eigenspace of the largest eigenvalue; None where none has converged."""
        values, vectors = np.linalg.eigh(self.tridiagonal[: self.steps, : self.steps])
        residual = abs(self.tridiagonal[self.steps - 1, self.steps] * vectors[-1, -1])
        return vectors[:, -1] @ self.basis if max(largest - values[-1], residual) <= ACCURATE * largest else None

    @property
    def _is_whole(self) -> bool:
        return self.tridiagonal[self.steps - 1, self.steps] == 0


def _direction(grid: Grid, vector: np.ndarray, found: Spectrum, largest: float) -> dict[str, Any]:
    """Of the top eigenvector: its part along the mean input, and its largest part of one channel."""
    of_channels = vector[grid.entries]
    mean = _mean(grid)
    along = of_channels @ (mean / np.linalg.norm(mean)) if mean.any() else np.zeros(1)
    values, counts = np.asarray(found.eigenvalues), np.asarray(found.multiplicities)
    is_alone = bool(found.complete) and counts[values >= ALONE * largest].sum() == 1
    parts = np.sum(of_channels**2, axis=1)
    channel = {"top_channel": int(parts.argmax()), "top_channel_share": float(parts.max())} if is_alone else {}
    return {"top_on_mean": float(np.sum(along**2)), **channel}


def _mean(grid: Grid) -> np.ndarray:
    inputs = grid.inputs[0]
    return sum((rows.sum(0) for _, rows in inputs.chunks()), np.zeros(inputs.shape[1])) / inputs.shape[0]


def moments(grid: Grid, zero: float) -> dict[str, float]:
    """Condition numbers of C, of C without the mean, and of C scaled to a diagonal of ones.

    All on as many directions, so that none is smaller because one has vanished.

    Args:
        grid: The layer's product.
        zero: Eigenvalues count as zero at or below this times the largest.
    """
    inputs = grid.inputs[0]
    places, order = inputs.shape
    if min(places, order) > MAX_ORDER or float(places) * order * min(places, order) > MAX_OPERATIONS:
        return {}
    is_data = np.arange(order) < inputs.depth  # the ones of a bias stay as they are
    if places < order:
        rows = inputs.take(slice(None))
        mean, size = rows.mean(0), np.sqrt(np.mean(rows**2, axis=0))
        changed = rows, rows - np.where(is_data, mean, 0), rows / np.where(is_data & (size > 0), size, 1)
        moments_of = [one @ one.T / places for one in changed]
    else:
        plain, mean = np.zeros((order, order)), np.zeros(order)
        for _, rows in inputs.chunks():
            plain += rows.T @ rows / places
            mean += rows.sum(0) / places
        size = np.sqrt(np.diagonal(plain))
        by = np.where(is_data & (size > 0), size, 1)
        # Of ones there is no mean to take, and the others are orthogonal to them then.
        around = np.where(is_data, mean, 0)
        centered = plain - np.outer(around, around)
        centered[np.ix_(is_data, ~is_data)] = centered[np.ix_(~is_data, is_data)] = 0
        moments_of = [plain, centered, plain / np.outer(by, by)]
    every = [np.linalg.eigvalsh(moment)[::-1] for moment in moments_of]
    rank = min(int(np.sum(values > zero * values[0])) for values in every)
    if not rank:
        return {}
    names = ("kappa_inputs", "kappa_centered", "kappa_scaled")
    return {name: float(values[0] / values[rank - 1]) for name, values in zip(names, every, strict=True)}
