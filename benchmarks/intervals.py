"""How often the interval of kappa_plus holds: random factors in float32, every method, any budget.

    python benchmarks/intervals.py [trials]

The truth is the SVD of the same float32 factor in float64, by the same rank rule.
"""

import collections
import sys

import jax.numpy as jnp
import numpy as np

import localhessian as lh
from localhessian.linalg import gram, matrix_map

BATCH = 100
SHAPES = ((60, 40), (40, 60), (48, 48))
METHODS = (
    lh.Dense(),
    lh.GolubKahan(),
    lh.GolubKahan(max_matvecs=12),
    lh.GolubKahan(basis_size=12, max_matvecs=60, k=1),
    lh.GolubKahan(block_size=3, max_matvecs=30),
    lh.GolubKahan(which="smallest", basis_size=12, max_matvecs=60, k=1),
    lh.Lanczos(),
    lh.Lanczos(basis_size=12, max_matvecs=60, k=1),
)
EPS = float(np.finfo(np.float32).eps)


def factors(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A batch of factors of random rank, decay and scale."""
    order = min(shape)
    left = np.linalg.qr(random.normal(size=(BATCH, shape[0], shape[0])))[0][:, :, :order]
    right = np.linalg.qr(random.normal(size=(BATCH, shape[1], shape[1])))[0][:, :, :order]
    decay = random.uniform(0, 3.5, (BATCH, 1))
    sigma = 10 ** (-decay * np.sort(random.uniform(0, 1, (BATCH, order)), axis=1) ** random.uniform(0.3, 3, (BATCH, 1)))
    rank = np.where(random.random(BATCH) < 0.5, order, random.integers(1, order + 1, BATCH))
    sigma = np.where(np.arange(order)[None] < rank[:, None], sigma, 0) * 10 ** random.uniform(-6, 6, (BATCH, 1))
    return ((left * sigma[:, None, :]) @ np.swapaxes(right, 1, 2)).astype(np.float32)


def kappa_plus(batch: np.ndarray, cutoff: float) -> np.ndarray:
    sigma = np.linalg.svd(batch.astype(np.float64), compute_uv=False)
    smallest = np.min(np.where(sigma > cutoff * sigma[:, :1], sigma, np.inf), axis=1)
    return (sigma[:, 0] / smallest) ** 2


def main(trials: int) -> None:
    random, seen = np.random.default_rng(0), collections.Counter()
    for trial in range(0, trials, BATCH):
        method = METHODS[(trial // BATCH) % len(METHODS)]
        shape = SHAPES[(trial // BATCH // len(METHODS)) % len(SHAPES)]
        batch = factors(random, shape)
        found = lh.spectrum(gram(matrix_map(jnp.asarray(batch))), method)
        kappa = lh.condition_number(found)
        rounding = 100 * EPS
        truth = kappa_plus(batch, rounding if found.singular_values is not None else rounding**0.5)
        # A bound may be off by the rounding of the arithmetic that made it.
        slack = 1 + 1e-3
        lower_fails = np.asarray(kappa.lower) > truth * slack
        upper_fails = np.asarray(kappa.upper) * slack < truth
        seen["trials"] += BATCH
        seen["lower bound fails"] += int(lower_fails.sum())
        seen["upper bound fails"] += int(upper_fails.sum())
        seen["fails"] += int((lower_fails | upper_fails).sum())
        seen["finite upper bounds"] += int(np.isfinite(np.asarray(kappa.upper)).sum())
        seen["finite values"] += int(np.isfinite(np.asarray(kappa.value)).sum())
        seen["rank uncertain"] += int((np.asarray(kappa.status) == int(lh.Status.RANK_UNCERTAIN)).sum())
    for what, count in seen.items():
        print(f"{what:24s} {count:6d}")
    print(f"the interval held in {100 * (1 - seen['fails'] / seen['trials']):.3f} %")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
