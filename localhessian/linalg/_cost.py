"""What work takes on this machine: seconds by operation counts over rates that are measured once, and bytes."""

import contextlib
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from platformdirs import user_cache_dir
from scipy.linalg import blas

from localhessian._files import write_text
from localhessian.linalg.krylov import Krylov
from localhessian.linalg.operators import Operator, Streamed
from localhessian.linalg.structure import Structure, eigenvalues

STEP = 2.0
"""Of the time of its products, what a step of an iteration takes (heuristic: orthogonalization, of a VGG's blocks)."""


class Cost(NamedTuple):
    """Predicted, compilation apart."""

    seconds: float
    bytes: float
    """Beside the operator itself."""


def of_structure(structure: Structure) -> Cost:
    """Of every block decomposed."""
    gram, eigen = structure.operations()
    gram_rate, eigen_rate = rates()
    return Cost((gram / gram_rate + eigen / eigen_rate) / structure.workers, structure.bytes())


def of_dense(operator: Operator, *, timed: bool = True) -> Cost:
    """Of the matrix, formed and decomposed; `timed`: whether one of the products is made to see what they take."""
    order, numbers = extent(operator)
    gram_rate, eigen_rate = rates()
    if isinstance(operator, Streamed):
        decompose = 4.0 * operator.rows * order**2 / gram_rate + 4 / 3 * float(order) ** 3 / eigen_rate
        return Cost(_of_pass(operator) + decompose if timed else decompose, 32.0 * numbers)
    copies = operator.batch or 1
    decompose = order * numbers / gram_rate + copies * 4 / 3 * float(order) ** 3 / eigen_rate
    multiplied = operator if operator.factor is None else operator.factor
    products = order * of_product(multiplied) if timed else 0.0
    return Cost(products + decompose, 4.0 * numbers + 16.0 * copies * order**2)


def _of_pass(operator: Streamed) -> float:
    """Seconds to make every row of every part, once: as many products with each as its smaller side."""
    weight, part = next(operator.parts())
    multiplied = part if part.factor is None else part.factor
    return of_product(operator) + extent(part)[0] * of_product(multiplied) / weight


def of_iteration(operator: Operator, method: Krylov, steps: float) -> Cost:
    """Of so many steps: a product with H, or one with R and one back, in each."""
    return Cost(STEP * steps * of_product(operator.symmetric), basis_bytes(operator, method))


def basis_bytes(operator: Operator, method: Krylov) -> float:
    """Of memory: the basis of an iteration, twice where it restarts."""
    factor = operator.factor
    numbers = (operator.batch or 1) * (operator.size + (0 if factor is None else factor.out_size))
    rows = method.plan(extent(operator)[0], numbers, operator.dtype, 0).size
    return 2.0 * rows * numbers * operator.dtype.itemsize


def extent(operator: Operator) -> tuple[int, float]:
    """The order of the matrix that is decomposed, and how many numbers it has, of all operators of a batch."""
    factor = operator.factor
    sides = operator.size, operator.size if factor is None else factor.out_size
    return min(sides), float(sides[0]) * sides[1] * (operator.batch or 1)


def of_product(operator: Operator) -> float:
    """Seconds of one product, measured after its compilation."""
    prepared = operator.prepare()
    v = jnp.ones((operator.size,) if operator.batch is None else (operator.batch, operator.size), operator.dtype)
    jax.block_until_ready(prepared.mv(v))
    return min(_seconds(lambda: jax.block_until_ready(prepared.mv(v))) for _ in range(3))


@functools.lru_cache(maxsize=1)
def rates() -> tuple[float, float]:
    """Multiplications per second of Gram matrices and of symmetric eigenvalues of order 256.

    Measured once in a process; the best that any process found is kept in the user's folder for caches, so that what
    else runs now makes no difference. With the environment variable LOCALHESSIAN_CACHE=0 nothing is kept.
    """
    gram, eigen = _measured()
    if os.environ.get("LOCALHESSIAN_CACHE") == "0":
        return gram, eigen
    machine = f"{platform.machine()} {platform.processor()} {os.cpu_count()} cores, numpy {np.__version__}"
    path = Path(user_cache_dir("localhessian")) / "rates.json"
    known: dict[str, list[float]] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # not measured yet, or by another hand
        known = dict(json.loads(path.read_text()))
    with contextlib.suppress(KeyError, TypeError, ValueError):
        gram, eigen = (max(now, float(before)) for now, before in zip((gram, eigen), known[machine], strict=True))
    if known.get(machine) != [gram, eigen]:
        with contextlib.suppress(OSError):  # nothing is lost but time
            write_text(path, json.dumps(known | {machine: [gram, eigen]}))
    return gram, eigen


def _measured() -> tuple[float, float]:
    matrix = np.asfortranarray(np.random.default_rng(0).standard_normal((256, 2048)))
    gram = blas.dsyrk(1.0, matrix)
    works: tuple[Callable[[], object], ...] = (
        lambda: blas.dsyrk(1.0, matrix),
        lambda: eigenvalues(gram.copy(order="F")),
    )
    fast = [min(_seconds(work) for _ in range(3)) for work in works]
    return matrix.size * 256 / fast[0], 4 / 3 * 256.0**3 / fast[1]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
