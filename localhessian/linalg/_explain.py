"""What `lh.spectrum` will do with an operator, why, and what it will take."""

import dataclasses
import time
from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import blas

from localhessian._arguments import expect
from localhessian.linalg._dense import Dense
from localhessian.linalg._solve import Method, unstructured
from localhessian.linalg.krylov import BASIS_BYTES, ROWS, Krylov
from localhessian.linalg.operators import Operator, check_operator
from localhessian.linalg.structure import Declined, Structure, Structured, eigenvalues


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """The route of an operator; printed, it is a few lines of text."""

    label: str
    size: int
    batch: int | None
    method: Method
    """What `lh.spectrum` takes by itself."""
    reason: str
    structure: Structure | None
    seconds: float
    """Predicted, compilation apart."""
    bytes: float
    """Predicted, beside the operator itself."""

    def __str__(self) -> str:
        """The lines."""
        times = "" if self.batch is None else f", {self.batch} of them"
        return (
            f"{self.label or 'operator'}: order {self.size}{times}\n"
            f"  route   {self.method}\n"
            f"  why     {self.reason}\n"
            f"  cost    about {self.seconds:.2g} s and {self.bytes / 2**20:.3g} MiB"
        )

    __repr__ = __str__


def explain(operator: Operator, structured: Structured | None = None, /) -> Explanation:
    """Which route `lh.spectrum` takes with an operator, why, and the predicted time and memory.

    Args:
        operator: From `lh.local_hessian`, `lh.symmetric_operator` or `lh.linear_map`, with numbers.
        structured: Limits of the structured route; None for those of `lh.spectrum`.

    Returns:
        An explanation to print. Predictions are operation counts over the rates of this machine, measured once; of
        iterative methods, the whole budget of products.

    Cost: the search for structure, and otherwise two products.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> chain = lh.Chain([lh.Block("a", lambda w, z: jnp.tanh(z @ w)), lh.Block("b", lambda w, z: z @ w)])
        >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 1))}
        >>> loss = lambda z, y: 0.5 * ((z - y) ** 2).sum(1)
        >>> matching = lh.back_match(chain, params, jnp.ones((5, 3)), jnp.zeros((5, 1)), loss)
        >>> explanation = lh.explain(lh.local_hessian(matching, "a"))
        >>> print(explanation.reason)
        block diagonal: 4 blocks, all equal, decomposed at order 3 or less
    """
    check_operator(operator)
    if structured is not None:
        expect("structured", structured, Structured, "a `lh.Structured(...)` or None")
    size = operator.size
    try:
        structured = structured or Structured()
        structure = structured.find(operator)
    except Declined as declined:
        method = unstructured(operator)
        seconds, needed = _iterative(operator, method) if isinstance(method, Krylov) else _dense(operator)
        held = "the matrix would take too long" if Dense().fits(operator) else "the matrix is too large to hold"
        small = "the matrix fits" if isinstance(method, Dense) else held
        reason = f"no structure: {declined}; {small}"
        return Explanation(operator.label, size, operator.batch, method, reason, None, seconds, needed)
    reason = str(structure)
    if structured.blocks is not None:
        seconds, needed = _iterative(operator, structured.blocks)
        return Explanation(operator.label, size, operator.batch, structured, reason, structure, seconds, needed)
    gram, eigen = structure.operations()
    gram_rate, eigen_rate = _rates()
    seconds, needed = (gram / gram_rate + eigen / eigen_rate) / structure.workers, structure.bytes()
    return Explanation(operator.label, size, operator.batch, structured, reason, structure, seconds, needed)


def _dense(operator: Operator) -> tuple[float, float]:
    factor = operator.factor
    sides = (operator.size, operator.size if factor is None else factor.out_size)
    order, long, copies = min(sides), max(sides), operator.batch or 1
    gram_rate, eigen_rate = _rates()
    decompose = copies * (float(order) ** 2 * long / gram_rate + 4 / 3 * float(order) ** 3 / eigen_rate)
    return order * _product(operator) + decompose, copies * (float(order) * long * 4 + 16.0 * order**2)


def _iterative(operator: Operator, method: Krylov) -> tuple[float, float]:
    basis = max(BASIS_BYTES, ROWS * operator.size * (operator.batch or 1) * operator.dtype.itemsize)
    return method.max_matvecs * 2 * _product(operator), 2.0 * basis


def _product(operator: Operator) -> float:
    """Seconds of one product, after its compilation."""
    prepared = operator.prepare()
    size = operator.size
    v = jnp.ones((size,) if operator.batch is None else (operator.batch, size), operator.dtype)
    jax.block_until_ready(prepared.mv(v))
    started = time.perf_counter()
    jax.block_until_ready(prepared.mv(v))
    return time.perf_counter() - started


@lru_cache(maxsize=1)
def _rates() -> tuple[float, float]:
    """Multiplications per second of Gram matrices and of symmetric eigenvalues of order 256, measured once."""
    matrix = np.asfortranarray(np.random.default_rng(0).standard_normal((256, 2048)))
    gram = blas.dsyrk(1.0, matrix)
    seconds = [
        min(_seconds(work) for _ in range(3))
        for work in (lambda: blas.dsyrk(1.0, matrix), lambda: eigenvalues(gram.copy(order="F")))
    ]
    return matrix.size * 256 / seconds[0], 4 / 3 * 256.0**3 / seconds[1]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
