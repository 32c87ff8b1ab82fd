"""Spectral densities and traces against matfree: time and error in one run, on prescribed spectra.

    python benchmarks/densities.py [--size 500] [--probes 16] [--steps 40]

Both spend the same products. Error: mean absolute difference of the cumulative distribution from the truth on 200
points of the axis. matfree's quadrature returns the trace of *one* function and one number for each call; here its
Lanczos and bidiagonalization give the Gauss nodes and weights that its `monte_carlo_funm_*` uses, and the step
function that stochastic Lanczos quadrature means. Needs `pip install matfree`.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from matfree import decomp, stochtrace

import localhessian as lh
from localhessian.linalg import gram, matrix_map


def spectra(size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "uniform": np.linspace(1e-3, 1, size),
        "Marchenko-Pastur": np.linalg.svd(random.normal(size=(2 * size, size)))[1] ** 2 / (2 * size),
        "geometric": np.geomspace(1e-6, 1, size),
        "outliers": np.r_[np.geomspace(1e-3, 1e-2, size - 8), np.linspace(0.3, 1, 8)],
        "clusters": np.repeat([1.0, 0.5, 0.01], [size // 4, size // 4, size - 2 * (size // 4)]),
        "null space": np.r_[np.zeros(size // 2), np.linspace(0.1, 1, size - size // 2)],
    }


def factor_of(eigenvalues: np.ndarray) -> jax.Array:
    size, random = len(eigenvalues), np.random.default_rng(1)
    left, right = (np.linalg.qr(random.normal(size=(size, size)))[0] for _ in range(2))
    return jnp.asarray((left * np.sqrt(eigenvalues)) @ right.T)


def timed(function: Callable) -> tuple[object, float]:
    """The result, and the best of three warm runs."""
    result = jax.block_until_ready(function())
    best = np.inf
    for _ in range(3):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        best = min(best, time.perf_counter() - begin)
    return result, best


def by_matfree(factor: jax.Array, points: jax.Array, probes: int, steps: int) -> Callable:
    """Stochastic Golub-Kahan quadrature of the step functions at the points, compiled whole."""
    bidiagonal = decomp.bidiag(steps)
    sample = stochtrace.sampler_sphere(jnp.zeros(factor.shape[1]), num=probes)

    @jax.jit
    def run(factor, key):
        def one(v):
            _, matrix, *_ = bidiagonal(lambda x: factor @ x, v)
            _, sigma, right = jnp.linalg.svd(matrix)
            return jnp.sum(jnp.where(sigma[None] ** 2 <= points[:, None], right[:, 0] ** 2, 0), axis=1)

        return jnp.mean(jax.vmap(one)(sample(key)), axis=0)

    return lambda: run(factor, jax.random.key(0))


def densities(size: int, probes: int, steps: int) -> None:
    print(f"density, {size} x {size}, {probes} probes, {steps} steps, log axis")
    heads = ("ours s", "matfree s", "ratio", "our error", "matfree's", "our bars")
    print(f"{'spectrum':18}", *(f"{head:>10}" for head in heads))
    for name, eigenvalues in spectra(size).items():
        factor, points = factor_of(eigenvalues), np.geomspace(3e-7, 1.2 * eigenvalues.max(), 201)
        operator, limits = gram(matrix_map(factor)), (float(points[0]), float(points[-1]))
        settings = {"axis": "log", "bins": 200, "limits": limits, "probes": probes, "steps": steps}
        ours, our_time = timed(lambda operator=operator, settings=settings: lh.spectral_density(operator, **settings))
        peer, peer_time = timed(by_matfree(factor, jnp.asarray(points), probes, steps))
        truth = np.mean(eigenvalues[None] <= points[:, None], axis=1)
        errors = [np.mean(np.abs(np.asarray(value) - truth)) for value in (ours.cumulative.value, peer)]
        bars = np.mean(ours.cumulative.probe_error + ours.cumulative.quadrature_error)
        numbers = (our_time, peer_time, our_time / peer_time, *errors, bars)
        print(f"{name:18}", *(f"{number:10.4f}" for number in numbers))


def convolution(probes: int, steps: int) -> None:
    """The derivative of a convolution by its kernel: matfree runs it inside a compiled loop, slow on the CPU."""
    images = jax.random.normal(jax.random.key(2), (16, 16, 16, 8))

    def convolved(images, kernel):
        kernel = kernel.reshape(3, 3, 8, 8)
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dimensions).ravel()

    size, out = 3 * 3 * 8 * 8, 16 * 16 * 16 * 8
    operator = lh.linear_map(Partial(convolved, images), None, size, out)
    _, ours = timed(lambda: lh.spectral_density(operator, axis="log", probes=probes, steps=steps))
    bidiagonal = decomp.bidiag(steps)

    @jax.jit
    def run(images, key):
        sample = stochtrace.sampler_sphere(jnp.zeros(size), num=probes)(key)
        return jax.vmap(lambda v: bidiagonal(lambda x: convolved(images, x), v)[1])(sample)

    _, peer = timed(lambda: run(images, jax.random.key(0)))
    print(f"\nconvolution, {probes} probes, {steps} steps: ours {ours:.2f} s, matfree {peer:.2f} s, {ours / peer:.3f}")


def breakdowns() -> None:
    """Operators whose recurrence ends after one step, without any rounding."""
    for name, diagonal in (("identity", jnp.ones(20)), ("zero", jnp.zeros(20))):
        (_, peer, *_), _ = timed(lambda diagonal=diagonal: decomp.bidiag(5)(lambda v: diagonal * v, jnp.ones(20)))
        ours = lh.spectral_density(lh.linear_map(Partial(jnp.multiply, diagonal), None, 20, 20), steps=5)
        finite = [bool(jnp.all(jnp.isfinite(part))) for part in (ours.cumulative.value, peer)]
        print(f"{name} of order 20: ours is finite: {finite[0]}, matfree's bidiagonal matrix: {finite[1]}")


def traces(size: int, probes: int) -> None:
    print(f"\nXTrace, {probes} products, root mean square error over 50 keys relative to the trace (claimed)")
    print(f"{'spectrum':18} {'ours':>22} {'matfree':>22}")
    keys = jax.random.split(jax.random.key(0), 50)
    for name, eigenvalues in spectra(size).items():
        for scale in (1.0, 1e-8):
            factor = factor_of(eigenvalues)
            matrix = scale * factor.T @ factor
            truth = float(np.trace(np.asarray(matrix, np.float64)))
            peer = jax.jit(lambda matrix: jax.vmap(lambda key: xtrace_by_matfree(matrix, key, probes))(keys))(matrix)
            found = jax.jit(lambda matrix: jax.vmap(lambda key: xtrace(matrix, key, probes))(keys))(matrix)
            texts = []
            for value, claimed in ((found.value, found.standard_error), peer):
                sizes = (np.sqrt(np.mean(np.asarray(part, float) ** 2)) for part in (value - truth, claimed))
                error, bar = (part / truth for part in sizes)
                texts.append(f"{error:.1e} ({bar:.1e})")
            print(f"{name + (' * 1e-8' if scale < 1 else ''):26} {texts[0]:>20} {texts[1]:>20}")


def xtrace(matrix: jax.Array, key: jax.Array, probes: int) -> lh.TraceEstimate:
    operator = lh.symmetric_operator(Partial(lambda matrix, v: matrix @ v, matrix), len(matrix))
    return lh.trace(operator, lh.XTrace(probes), key=key)


def xtrace_by_matfree(matrix: jax.Array, key: jax.Array, probes: int) -> tuple[jax.Array, jax.Array]:
    sample = stochtrace.sampler_sphere(jnp.zeros(len(matrix)), num=probes // 2)
    estimate = stochtrace.estimator_leave_one_out_mean_and_sem(stochtrace.leave_one_out_xtrace(), sample)
    return estimate(lambda v: matrix @ v, key)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("size", 500), ("probes", 16), ("steps", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    densities(arguments.size, arguments.probes, arguments.steps)
    convolution(2, 10)
    breakdowns()
    traces(min(arguments.size, 200), 30)
