"""The Krylov engine by itself: products against ARPACK, blocks on clusters, warm starts, the cost of bookkeeping.

python benchmarks/engine.py
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg as sla
from jax.tree_util import Partial

import localhessian as lh

N = 4000
RTOL = 1e-3
STARTS = 9


def separated(kappa: float) -> np.ndarray:
    """Geometric decay: every end is separated."""
    return np.geomspace(kappa, 1, N)


def clustered(gap: float, width: int) -> np.ndarray:
    """A cluster of `width` values at the top, `gap` apart relatively, over a bulk that ends at 0.9."""
    return np.concatenate([1 - gap * np.arange(width), np.linspace(0.9, 0, N - width)])


def operator(values: np.ndarray):
    diagonal = jnp.asarray(values, jnp.float32)
    return lh.symmetric_operator(Partial(_times, diagonal), len(values))


def _times(diagonal, v):
    return diagonal * v


def arpack(values: np.ndarray, k: int, seed: int) -> int:
    """Products until every wanted value has the relative residual RTOL, by the loosest tolerance that reaches it."""
    start = np.random.default_rng(seed).standard_normal(len(values)).astype(np.float32)
    best = None
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        count = [0]

        def product(v, count=count):
            count[0] += 1
            return values.astype(np.float32) * v.ravel()

        matrix = sla.LinearOperator((len(values),) * 2, product, dtype=np.float32)
        found, vectors = sla.eigsh(matrix, k=k, which="LA", tol=tolerance, v0=start)
        residual = np.linalg.norm(values[:, None] * vectors - vectors * found, axis=0) / np.abs(found)
        if residual.max() <= RTOL and (best is None or count[0] < best):
            best = count[0]
    return -1 if best is None else best


def products() -> None:
    print(f"products until the relative residual is 1e-3, k largest, medians of {STARTS} random starts:")
    print("  ours, blocks of 2 and 4, ARPACK")
    cases = {
        "geometric, kappa 1e2": separated(1e2),
        "geometric, kappa 1e4": separated(1e4),
        "geometric, kappa 1e8": separated(1e8),
        "cluster of 3, 1e-4 apart": clustered(1e-4, 3),
        "cluster of 6, 1e-6 apart": clustered(1e-6, 6),
        "multiplicity 4": clustered(0.0, 4),
    }
    for name, values in cases.items():
        for k in (1, 4):
            ours = [_ours(values, k, block) for block in (1, 2, 4)]
            theirs = int(np.median([arpack(values, k, seed) for seed in range(STARTS)]))
            print(f"  {name:26s} k={k}   {ours[0]:>6s} {ours[1]:>6s} {ours[2]:>6s}   {theirs:5d}")
    print("  ! a wanted value was missed or did not converge")


def _ours(values: np.ndarray, k: int, block: int) -> str:
    method, counts, wrong = lh.Lanczos(which="largest", k=k, block_size=block, max_matvecs=2000), [], ""
    for seed in range(STARTS):
        found = lh.spectrum(operator(values), method, key=jax.random.key(seed))
        seen, exact = np.asarray(found.eigenvalues)[-k:], np.sort(values)[-k:]
        wrong = wrong if np.allclose(seen, exact, rtol=2e-3) and bool(found.converged) else "!"
        counts.append(int(found.matvecs))
    return f"{int(np.median(counts))}{wrong}"


def warm_starts() -> None:
    print("products after a small change of the operator: cold, warm")
    for name, values in {"kappa 1e2": separated(1e2), "kappa 1e4": separated(1e4)}.items():
        method = lh.Lanczos(which="largest", k=3, max_matvecs=2000)
        first = lh.spectrum(operator(values), method, vectors=3)
        changed = values * (1 + 0.01 * np.random.default_rng(0).uniform(size=N))
        cold = lh.spectrum(operator(changed), method)
        warm = lh.spectrum(operator(changed), method, start=first.vectors)
        print(f"  {name:26s} {int(cold.matvecs):6d} {int(warm.matvecs):6d}")


def bookkeeping() -> None:
    print("milliseconds of each product: product alone, all else (of it: orthogonalization against the basis)")
    for size in (1_000, 30_000, 300_000, 1_000_000):
        op = operator(np.geomspace(1e4, 1, size))
        v = jnp.ones(size, jnp.float32)
        op.mv(v).block_until_ready()
        begin = time.perf_counter()
        for _ in range(50):
            op.mv(v).block_until_ready()
        alone = (time.perf_counter() - begin) / 50
        method = lh.Lanczos(which="largest", k=1, max_matvecs=60, rtol=1e-7, basis_size=32)
        lh.spectrum(op, method)
        begin = time.perf_counter()
        found = lh.spectrum(op, method)
        each = (time.perf_counter() - begin) / int(found.matvecs)
        basis = np.random.default_rng(0).standard_normal((16, size)).astype(np.float32)
        w, out = np.ones(size, np.float32), np.empty(size, np.float32)
        begin = time.perf_counter()
        for _ in range(10):
            for _ in range(2):
                np.subtract(w, (basis @ w) @ basis, out=out)
        against = (time.perf_counter() - begin) / 10
        rest = each - alone
        print(f"  n = {size:8d}   {1e3 * alone:7.3f}   {1e3 * rest:7.3f}   ({1e3 * against:7.3f})")


if __name__ == "__main__":
    print(jax.devices()[0].device_kind)
    products()
    warm_starts()
    bookkeeping()
