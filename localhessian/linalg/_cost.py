"""What work takes on this machine: seconds by operation counts over measured rates and by timed products, and bytes."""

from typing import NamedTuple

import jax
import numpy as np

from localhessian._clock import least_seconds
from localhessian.linalg._rates import eigen_rate, gram_rate, of_pieces, of_step, row_rate
from localhessian.linalg.krylov import Krylov, runs_whole
from localhessian.linalg.operators import Operator, Streamed, unit_products
from localhessian.linalg.structure import Structure, cores_for

WHOLE_STEP = 2.0
"""Of the time of its products, what a step of an iteration takes that is one program (heuristic)."""
TOGETHER = 16
"""Products with unit vectors that are timed at once, as a dense matrix is formed."""


class Cost(NamedTuple):
    """Predicted, compilation apart."""

    seconds: float
    bytes: float
    """Beside the operator itself."""


def of_structure(structure: Structure) -> Cost:
    """Of every block decomposed, on the cores that it takes: each has blocks of its own."""
    (gram, eigen), order, pieces = structure.operations(), structure.order, structure.pieces
    workers, alone = max(min(structure.workers, pieces), 1), structure.workers > 1
    arithmetic = gram / gram_rate(order, one_core=alone) + eigen / eigen_rate(order)
    # Rows are made; a Gram matrix of all inputs is picked and scaled from both sides for each block.
    moved = gram / max(order, 1) + 2.0 * pieces * order**2
    return Cost((arithmetic + moved / row_rate()) / workers + of_pieces(pieces), structure.bytes())


def of_dense(operator: Operator, *, timed: bool = True) -> Cost:
    """Of the matrix, formed and decomposed; `timed`: whether some of the products are made to see what they take."""
    order, numbers = extent(operator)
    copies = operator.batch or 1
    grams = 4.0 * operator.rows * order**2 if isinstance(operator, Streamed) else order * numbers
    eigen = copies * 4 / 3 * float(order) ** 3
    workers = cores_for(copies)
    decompose = (grams / gram_rate(order, one_core=workers > 1) + eigen / eigen_rate(order)) / workers
    if isinstance(operator, Streamed):
        return Cost(decompose + (_of_pass(operator) if timed else 0.0), 32.0 * numbers)
    return Cost(decompose + (_of_rows(operator) if timed else 0.0), 4.0 * numbers + 16.0 * copies * order**2)


def _of_rows(operator: Operator) -> float:
    """Seconds of the products with the unit vectors of the smaller side, of which some are made."""
    factor = operator.factor
    multiplied = operator if factor is None else factor if factor.in_size <= factor.out_size else factor.T
    prepared, order = multiplied.prepare(), extent(operator)[0]
    if not multiplied.in_programs:  # a sum that holds streams: parts of it are formed at once, which takes no longer
        return order * of_product(multiplied)
    count = min(order, TOGETHER)
    return least_seconds(lambda: jax.block_until_ready(unit_products(prepared, 0, count))) * order / count


def _of_pass(operator: Streamed) -> float:
    """Seconds to make every row of every part, once."""
    weight, part = next(operator.parts())
    return of_product(operator) + _of_rows(part) / weight


def of_iteration(operator: Operator, method: Krylov, steps: float) -> Cost:
    """Of so many steps: a product with H, or one with R and one back, in each."""
    product = of_product(operator.symmetric)
    step = WHOLE_STEP * product if runs_whole(operator) else product + of_step(_vectors(operator))
    return Cost(steps * step, basis_bytes(operator, method))


def _vectors(operator: Operator) -> float:
    """How many numbers the vectors of a step have, on both sides of a factor."""
    factor = operator.factor
    return float(operator.batch or 1) * (operator.size + (0 if factor is None else factor.out_size))


def basis_bytes(operator: Operator, method: Krylov) -> float:
    """Of memory: the basis of an iteration, twice where it restarts."""
    numbers = int(_vectors(operator))
    rows = method.plan(extent(operator)[0], numbers, operator.dtype, 0).size
    return 2.0 * rows * numbers * operator.dtype.itemsize


def extent(operator: Operator) -> tuple[int, float]:
    """The order of the matrix that is decomposed, and how many numbers it has, of all operators of a batch."""
    factor = operator.factor
    sides = operator.size, operator.size if factor is None else factor.out_size
    return min(sides), float(sides[0]) * sides[1] * (operator.batch or 1)


def of_product(operator: Operator) -> float:
    """Seconds of one product after its compilation; from the host's memory and back where the host iterates."""
    prepared, is_there = operator.prepare(), runs_whole(operator)
    v = np.ones((operator.size,) if operator.batch is None else (operator.batch, operator.size), operator.dtype)
    start, end = (jax.device_put(v), jax.block_until_ready) if is_there else (v, np.asarray)
    return least_seconds(lambda: end(prepared.mv(start)), waits=not operator.in_programs)
