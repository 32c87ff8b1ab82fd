"""What this machine does in a second: measured, and the best that any process found is kept."""

import contextlib
import functools
import json
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from platformdirs import user_cache_dir
from scipy.linalg import blas

from localhessian._blas import blas_threads, blas_threads_now
from localhessian._clock import least_seconds
from localhessian._files import write_text
from localhessian.linalg.krylov import GolubKahan
from localhessian.linalg.operators import gram, linear_map
from localhessian.linalg.structure import Structured, eigenvalues

ORDERS = (16, 64, 256, 1024, 2048)
"""Of measured matrices: small ones stay in caches, large ones do not, and rates differ by 50."""
COLUMNS = 2048
"""Of what a measured Gram matrix is of."""
STEPS = 16
"""Of a measured iteration."""
SHORT, LONG = 64, 2**18
"""Vectors of a measured iteration: what a step takes by itself, and what more numbers add."""
FEW, MANY = 2, 64
"""Blocks of a measured structure: what a decomposition takes by itself, and what more blocks add."""
WIDTH = 8
"""Of such a block."""
DEAR = 0.05
"""Seconds of a measurement that is made once on a machine, not once in each process."""
_measuring = threading.Lock()
"""What is measured runs alone."""


def gram_rate(order: int, *, one_core: bool) -> float:
    """Multiplications in a second of Gram matrices of this order in float64."""
    return _between("gram", order, one_core=one_core)


def eigen_rate(order: int) -> float:
    """The same of symmetric eigenvalues, 4/3 n^3 of each matrix, which take one core."""
    return _between("eigenvalues", order, one_core=True)


def row_rate() -> float:
    """Numbers in a second of rows in float64 that a Gram matrix is made of: picked, scaled and added up."""
    return _rate("rows", COLUMNS, 1)


def of_pieces(pieces: int) -> float:
    """Seconds of a structure decomposed in so many pieces, the arithmetic apart."""
    few, many = (1 / _rate("decompositions", count, 1, _programs()) for count in (FEW, MANY))
    return few + max(many - few, 0.0) * max(pieces - FEW, 0) / (MANY - FEW)


def of_step(numbers: float) -> float:
    """Seconds of a step of an iteration on the host whose vectors have so many numbers, its products apart."""
    least, long = (1 / _rate("steps", size, 1, _programs()) for size in (SHORT, LONG))
    return least + max(long - least, 0.0) * numbers / (2 * LONG)


def _between(kind: str, order: int, *, one_core: bool) -> float:
    """At a measured order, or between two; beyond all as at the nearest."""
    place = int(np.searchsorted(ORDERS, order))
    near = ORDERS[max(place - 1, 0) : place + 1]
    threads = 1 if one_core else blas_threads_now()
    rates = [_rate(kind, each, threads) for each in near]
    return float(np.exp(np.interp(np.log(max(order, 1)), np.log(near), np.log(rates))))


def _programs() -> str:
    """What else measured programs depend on, where there are any."""
    return f", jax {jax.__version__} on {jax.default_backend()}, {jnp.result_type(float)}"


@functools.cache
def _rate(kind: str, size: int, threads: int, programs: str = "") -> float:
    """Of one kind of work of one size, on so many threads of BLAS, by `programs` if it is made by any.

    The best that any process found is kept in the user's folder for caches, so that what else runs now makes little
    difference. With the environment variable LOCALHESSIAN_CACHE=0 nothing is kept.
    """
    operations, name = KINDS[kind].operations(size), f"{kind} {size} on {threads}{programs}"
    best = _kept().get(name, 0.0)
    if best > 0 and (KINDS[kind].compiles or operations > DEAR * best):
        return best
    with _measuring, blas_threads(threads):
        now = operations / least_seconds(KINDS[kind].work(size))
    if now > best:
        _keep(name, now)
    return max(now, best)


def _path() -> Path | None:
    return None if os.environ.get("LOCALHESSIAN_CACHE") == "0" else Path(user_cache_dir("localhessian")) / "rates.json"


def _machine() -> str:
    return f"{platform.machine()} {platform.processor()} {os.cpu_count()} cores, numpy {np.__version__}"


def _read() -> dict[str, Any]:
    path = _path()
    with contextlib.suppress(OSError, ValueError, TypeError):  # not measured yet, or by another hand
        return {} if path is None else dict(json.loads(path.read_text()))
    return {}


def _kept() -> dict[str, float]:
    with contextlib.suppress(ValueError, TypeError):
        return {str(name): float(rate) for name, rate in dict(_read().get(_machine(), {})).items()}
    return {}


def _keep(name: str, rate: float) -> None:
    path = _path()
    if path is not None:
        with contextlib.suppress(OSError):  # nothing is lost but time
            write_text(path, json.dumps(_read() | {_machine(): _kept() | {name: rate}}))


def _gram(order: int) -> Callable[[], object]:
    rows = np.asfortranarray(np.random.default_rng(0).standard_normal((order, COLUMNS)))
    return lambda: blas.dsyrk(1.0, rows)


def _eigenvalues(order: int) -> Callable[[], object]:
    matrix = np.random.default_rng(0).standard_normal((order, order))
    symmetric = np.asfortranarray(matrix + matrix.T)
    return lambda: eigenvalues(symmetric.copy(order="F"))


def _rows(count: int) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    matrix, scale, places = rng.standard_normal((count, ORDERS[2])), rng.standard_normal((count, 1)), np.arange(count)

    def work() -> None:
        out, picked = np.zeros(matrix.shape), matrix.take(places, 0)
        picked *= scale
        out += picked

    return work


def _decompositions(blocks: int) -> Callable[[], object]:
    """Of channels of a dense layer of few variables."""
    rng = np.random.default_rng(0)
    inputs, slopes = (jnp.asarray(rng.standard_normal((WIDTH, end)), np.float32) for end in (WIDTH, blocks))
    size = WIDTH * blocks
    layer = lambda v: (slopes * (inputs @ v.reshape(WIDTH, blocks))).ravel()
    operator, method = gram(linear_map(layer, None, size, size, dtype=np.float32)), Structured()
    structure = method.find(operator)
    return lambda: method.decompose(structure, operator)


def _steps(size: int) -> Callable[[], object]:
    """Of a diagonal, whose products take next to no time."""
    diagonal = jnp.linspace(1.0, 2.0, size)
    operator = gram(linear_map(lambda v: diagonal * v, lambda u: diagonal * u, size, size, dtype=diagonal.dtype))
    method = GolubKahan(max_matvecs=STEPS, rtol=1e-6, which="largest", k=1)
    return lambda: method.run(operator, jax.random.key(0), 0)


class Kind(NamedTuple):
    """Of work."""

    operations: Callable[[int], float]
    work: Callable[[int], Callable[[], object]]
    """Ready to be done."""
    compiles: bool = False
    """Whether that takes programs, and far longer than the work: it is measured once on a machine too."""


KINDS = {
    "gram": Kind(lambda order: float(order) ** 2 * COLUMNS, _gram),
    "eigenvalues": Kind(lambda order: 4 / 3 * float(order) ** 3, _eigenvalues),
    "rows": Kind(lambda count: float(count) * ORDERS[2], _rows),
    "decompositions": Kind(lambda _: 1.0, _decompositions, compiles=True),
    "steps": Kind(lambda _: float(STEPS), _steps, compiles=True),
}
