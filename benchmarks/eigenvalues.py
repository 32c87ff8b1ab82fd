"""Eigenvalues alone of float64 matrices: NumPy, ours, and the two routines between which ours divides.

    OMP_NUM_THREADS=1 python benchmarks/eigenvalues.py

Milliseconds of the processor for one matrix of D K D with a common K, as the units of a dense layer have. What is left
of ours are the reduction to tridiagonal form (dsytrd) and the iteration (dsterf), at LAPACK's rate.
"""

import time
from collections.abc import Callable

import numpy as np
from scipy.linalg import lapack

from localhessian.linalg.structure import _lapack

ORDERS = (64, 128, 256, 512, 1024, 2304)


def milliseconds(function: Callable[[np.ndarray], object], matrices: list[np.ndarray]) -> float:
    taken = []
    for _ in range(5):
        fresh = [matrix.copy(order="K") for matrix in matrices]
        begin = time.process_time()
        for matrix in fresh:
            function(matrix)
        taken.append(time.process_time() - begin)
    return 1e3 * min(taken) / len(matrices)


def main() -> None:
    random = np.random.default_rng(0)
    for n in ORDERS:
        rows = random.standard_normal((n, 2 * n))
        scales = random.uniform(0.1, 1, (max(2048 // n, 1), n))
        matrices = [np.asfortranarray((rows @ rows.T) * scale * scale[:, None]) for scale in scales]
        plain = milliseconds(lambda matrix: np.linalg.eigvalsh(matrix, UPLO="U"), matrices)
        ours = milliseconds(_lapack.eigenvalues, matrices)
        _, diagonal, beside, _, _ = lapack.dsytrd(matrices[0])
        iterate = milliseconds(lambda _, pair=(diagonal, beside): lapack.dsterf(*pair), matrices)
        error = max(
            float(np.abs(_lapack.eigenvalues(m.copy(order="K")) - np.linalg.eigvalsh(m)).max() / np.linalg.norm(m, 2))
            for m in matrices[:4]
        )
        print(
            f"order {n:5d}   NumPy {plain:8.3f} ms   ours {ours:8.3f} ms   {plain / ours:5.2f} x   "
            f"of it the iteration {iterate:7.3f} ms   differ by {error:.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
