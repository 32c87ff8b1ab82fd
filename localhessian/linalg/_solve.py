"""The verb: eigenvalues of an operator by a method, as ARPACK's drivers and LAPACK's are called.

    numpy.linalg.eigvalsh(A)         spectrum(H, Dense()): every eigenvalue, of a matrix that is formed
    eigsh(A, k, which="LA")          spectrum(H, Lanczos(which="largest", k=k)): products alone
    eigsh(A, k, which="SA")          Lanczos(which="smallest", k=k): of an indefinite H
    eigsh(A, 2 * k, which="BE")      Lanczos(which="both", k=k): k at each end
    svds(A, k)                       spectrum(A, GolubKahan(which="largest", k=k)), A a linear map; of H = R^T R its
                                     factor R is taken
    eigsh(A, k, sigma=0)             GolubKahan(which="smallest", k=k) of the factor: nothing is inverted here, and the
                                     small end is hidden by the rounding of H, not by that of R
    ncv, maxiter, tol, v0            basis_size, max_matvecs, rtol, start

What ARPACK has no case for: `Structured()`, every eigenvalue of an H that falls into small blocks.

Source: R. Lehoucq, D. Sorensen & C. Yang, ARPACK Users' Guide (1998).
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect_flag, expect_key, number, short
from localhessian._mesh import everywhere, is_elsewhere, is_traced
from localhessian._programs import compiled, full_precision, is_eager
from localhessian._progress import Progress, follow, silent
from localhessian._status import REFUSED, Status, quietly
from localhessian._tree import is_concrete
from localhessian._types import Array, Float, Key
from localhessian.linalg._dense import Dense
from localhessian.linalg.krylov import GolubKahan, Lanczos
from localhessian.linalg.operators import Operator, check_operator, contradiction
from localhessian.linalg.spectra import Spectrum, SpectrumError, within_range
from localhessian.linalg.structure import Declined, Structured

MAX_OPERATIONS = 5e11
"""Multiplications of a dense decomposition that nobody asked for, as of `Structured`: one of order 4,096 is below."""
_METHODS = (Structured, Dense, GolubKahan, Lanczos)


@runtime_checkable
class Method(Protocol):
    """How eigenvalues are computed: a frozen dataclass, printable and hashable."""

    def run(
        self,
        operator: Operator,
        key: Key,
        vectors: int,
        start: Array | None = None,
        show: Progress = silent,
    ) -> Spectrum:
        """Compute; `show` is told how far it is."""


def spectrum(
    operator: Operator,
    /,
    method: Method | None = None,
    *,
    key: Key | None = None,
    vectors: int = 0,
    start: Float[Array, "*s d k"] | None = None,
    throw: bool = True,
    progress: Progress | bool = False,
) -> Spectrum:
    """Eigenvalues of a symmetric operator, or of A^T A of a linear map A (with the singular values of A).

    Args:
        operator: From `lh.local_hessian`, `lh.symmetric_operator` or `lh.linear_map`; a batched operator gives a
            batched spectrum.
        method: `lh.Structured`, `lh.Dense`, `lh.GolubKahan` (needs a factor) or `lh.Lanczos`; None takes
            `Structured()` where it finds something (under `jax.jit` too) and no vectors are asked for, `Dense()` where
            it fits, then `GolubKahan()` where there is a factor, then `Lanczos()`. `lh.explain` tells which and why.
        key: Of the random start vectors; default `jax.random.key(0)`.
        vectors: How many eigenvectors to return, of the largest eigenvalues.
        start: Vectors near to those wanted, in columns, as an earlier spectrum's `vectors`: an iterative method begins
            with them (and random ones beside them, unless only the largest are sought), which saves products, and gives
            up its probability statements. Exact methods need none.
        throw: Whether to raise where the numbers mean nothing. Under `jax.jit` only `status` tells.
        progress: True shows a bar; a function is called with (done, total, what): products of the budget, or blocks
            that were decomposed. Silent where everything is one compiled program.

    Returns:
        Eigenvalues ascending with residual norms, matvecs, status and completeness.

    Raises:
        SpectrumError: Products are not finite, not linear, not symmetric (of a linear map: not each other's transpose),
            or differ when repeated.
        KeyboardInterrupt: From the products of an iteration on the host a `SpectrumInterrupt`, which holds what was
            found.
        ValueError: The operator does not fit the method, or has fewer than `vectors` eigenvectors; `start` has
            another shape.

    Eigenvalues, and condition numbers of them, may be differentiated (`jax.grad`): of an iterative method as v^T dH v,
    at the cost of a derivative of one product for each value, and as exact as the vector v is; its vectors and
    residuals are constants then, so that second derivatives are wrong: take those by `Dense`.

    Cost: see the method; of a symmetric operator of your own five products more, which test what it claims to be.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> diagonal = jnp.array([3.0, 1.0, 2.0])
        >>> print(lh.spectrum(lh.symmetric_operator(lambda v: diagonal * v, 3)).eigenvalues)
        [1. 2. 3.]
    """
    check_operator(operator)
    expect_key(key)
    check_method(method)
    expect_flag("throw", throw)
    size = operator.size
    if number(vectors, "iu") is None or not 0 <= vectors <= size:
        raise ValueError(f"`vectors` must lie between 0 and the operator's size {size}, got {short(vectors)}.")
    if start is not None:
        _check_start(start, operator, size)
    with quietly(), full_precision(), follow(progress, "product") as show:
        wrong = contradiction(operator)
        if throw and wrong is not None:
            raise SpectrumError(_sentence(operator, wrong))
        key = jax.random.key(0) if key is None else key
        if is_elsewhere(operator, start):
            found = _run_whole(operator.prepare(), method, key, vectors, start)
            found = dataclasses.replace(everywhere(dataclasses.replace(found, vectors=None)), vectors=found.vectors)
        elif is_traced(operator, start) and is_eager():
            found = _run_whole(operator.prepare(), method, key, vectors, start)
        else:
            found = _run(operator, method, key, vectors, start, show)
        found = within_range(found) if wrong is None else found.refused(wrong)
    if throw and is_concrete(found.status):
        statuses = np.asarray(found.status)
        worst = [status for status in REFUSED if (statuses == int(status)).any()]
        if worst:
            raise SpectrumError(_sentence(operator, worst[0]))
    return found


def check_method(method: Any) -> None:
    """Refuse what is no method (TypeError): a name or a class, or what has no `run`."""
    if method is not None and (isinstance(method, type) or not hasattr(method, "run")):
        name = next((kind.__name__ for kind in _METHODS if method is kind), "Lanczos")
        raise TypeError(f"`method` must be a method, as `lh.{name}()`, or None, got {short(method)}.")


def _sentence(operator: Operator, status: Status) -> str:
    if operator.label and status is Status.NOT_SYMMETRIC:
        # A derivative of a model: whatever is not symmetric about it is rounding.
        return (
            f"{operator.label}: its products are symmetric only up to the rounding of the model's own arithmetic, "
            "more than its dtype promises. Compute in a wider type throughout, or analyze the Gauss-Newton part."
        )
    return f"{operator.label or 'the operator'}: {status.message}"


def _check_start(start: Array, operator: Operator, size: int) -> None:
    lead = () if operator.batch is None else (operator.batch,)
    kind = start.dtype if hasattr(start, "shape") and hasattr(start, "dtype") else None
    is_real = kind is not None and any(jnp.issubdtype(kind, real) for real in (jnp.floating, jnp.integer))
    shape = start.shape if is_real else None
    if shape is None or len(shape) != len(lead) + 2 or shape[:-1] != (*lead, size) or not shape[-1]:
        got = short(start) if shape is None else f"shape {shape}"
        raise ValueError(f"`start` must hold vectors in columns, shape {(*lead, size)} and one more axis, got {got}.")


def _run(
    operator: Operator, method: Method | None, key: Key, vectors: int, start: Array | None, show: Progress
) -> Spectrum:
    if method is None and not vectors:
        with contextlib.suppress(Declined):
            return Structured().attempt(operator, key, show)
    return (unstructured(operator) if method is None else method).run(operator, key, vectors, start, show)


_run_whole: Callable[..., Spectrum] = compiled(
    lambda operator, method, key, vectors, start: _run(operator, method, key, vectors, start, silent),
    static_argnums=(1, 3),
)
"""As one program: where no process has all numbers, and under `jax.grad` or `jax.vmap` without `jax.jit`."""


def unstructured(operator: Operator) -> Method:
    """The method for an operator without structure."""
    if Dense(max_operations=MAX_OPERATIONS).fits(operator):
        return Dense()
    return Lanczos() if operator.factor is None else GolubKahan()
