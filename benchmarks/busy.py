"""What work on a busy machine takes, by as many threads of BLAS as there are cores, and by those that pay.

    python benchmarks/busy.py

Every core has a process that only counts, or none. Seconds of the clock, the mean of five; for "all" the limits that
`localhessian._blas` sets are taken out.
"""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import localhessian as lh
from localhessian import _blas
from localhessian._blas import blas_threads_now
from localhessian.lab import zoo
from localhessian.linalg.structure import _lapack
from localhessian.linalg.structure._threads import cores

ORDERS = (752, 2048)
NUMBERS = (2**14, 2**17, 2**20)
REPEATS = 5
ROWS = 30
"""Of a basis that an iteration orthogonalizes against."""


def count() -> None:
    while True:
        pass


@contextlib.contextmanager
def busy() -> Iterator[None]:
    others = [multiprocessing.get_context("spawn").Process(target=count, daemon=True) for _ in range(cores())]
    for other in others:
        other.start()
    time.sleep(1)
    try:
        yield
    finally:
        for other in others:
            other.kill()


@contextlib.contextmanager
def unlimited() -> Iterator[None]:
    """As before there were limits."""
    before, limited = _blas.LONG, _lapack.blas_threads
    _blas.LONG, _lapack.blas_threads = -1, lambda _: contextlib.nullcontext()
    try:
        yield
    finally:
        _blas.LONG, _lapack.blas_threads = before, limited


def seconds(work: Callable[[], object]) -> float:
    """The mean, not the least: what waits for the scheduler takes now 50 ms, now 5 s."""
    taken = []
    for _ in range(REPEATS):
        time.sleep(0.1)  # as between the rows of an analysis
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return sum(taken) / REPEATS


def works() -> Iterator[tuple[str, Callable[[], object]]]:
    random = np.random.default_rng(0)
    for order in ORDERS:
        rows = random.standard_normal((order, 2 * order))
        gram = rows @ rows.T
        yield f"eigenvalues, order {order}", lambda gram=gram: _lapack.eigenvalues(gram.copy())
    for numbers in NUMBERS:
        basis, v = random.standard_normal((ROWS, numbers), np.float32), random.standard_normal(numbers, np.float32)

        def orthogonalize(basis: np.ndarray = basis, v: np.ndarray = v) -> None:
            with _blas.threads_that_pay(v.size):
                for _ in range(20):
                    basis.T @ (basis @ v)

        yield f"20 times against {ROWS} vectors of {numbers:,}", orthogonalize
    for name, given in (("gpt", of_gpt()), ("a mixer", of_mixer())):
        names = given[0].names[1:3]
        lh.analyze(*given, blocks=names)
        yield f"analyze, two blocks of {name}", lambda given=given, names=names: lh.analyze(*given, blocks=names)


def of_gpt() -> tuple[Any, ...]:
    case = zoo.case("gpt")
    return *case.cut[:2], case.x, case.y, case.loss, case.cut[2]


def of_mixer() -> tuple[Any, ...]:
    """16 images as 64 patches of 48 numbers, which layers mix: products that take a millisecond."""
    random = np.random.default_rng(0)
    draw: Callable[..., jax.Array] = lambda *shape: jnp.asarray(random.standard_normal(shape) / shape[0] ** 0.5, "f4")
    names = [f"mixer{i}" for i in range(4)]
    params = {name: {"up": draw(64, 32), "down": draw(32, 64), "out": draw(48, 48)} for name in names}
    chain = lh.Chain([lh.Block(name, mix) for name in names])
    return chain, params, draw(16, 64, 48), draw(16, 64, 48), lambda z, y: ((z - y) ** 2).mean((1, 2))


def mix(params: dict[str, jax.Array], z: jax.Array) -> jax.Array:
    z = z + (jax.nn.gelu(z.swapaxes(1, 2) @ params["up"]) @ params["down"]).swapaxes(1, 2)
    return z + jax.nn.gelu(z @ params["out"])


def main() -> None:
    print(f"{cores()} cores, {blas_threads_now()} threads of BLAS")
    print(f"{'':44s}{'alone: all':>12s}{'that pay':>10s}{'busy: all':>12s}{'that pay':>10s}{'gain':>8s}")
    for name, work in works():
        found = []
        for around in (contextlib.nullcontext, busy):
            with around():
                with unlimited():
                    found.append(seconds(work))
                found.append(seconds(work))
        print(f"{name:44s}{found[0]:12.3f}{found[1]:10.3f}{found[2]:12.3f}{found[3]:10.3f}{found[2] / found[3]:8.1f}")


if __name__ == "__main__":
    main()
