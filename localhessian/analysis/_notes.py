"""Why a figure is missing or doubtful, in words: a short reason first, then which samples, and what to do."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from localhessian._blas import threads_that_pay
from localhessian._status import Status
from localhessian._tree import floating_leaves, ravel_samples
from localhessian.analysis._figures import SEVERITY
from localhessian.curvature import Part, loss_hessian
from localhessian.linalg import ConditionNumber, noise
from localhessian.network import BackMatching

LIKELY = 0.01
"""A probability of having missed lambda_max above this is told."""
LISTED = 8
"""Samples that are told by their index."""
MAX_OUTPUTS = 256
"""Outputs of a sample above which its loss Hessian is not looked at."""
SURVEYED = (
    "lower bounds only: lambda_max by its residual, the rest by quadrature; `method=lh.{}(max_matvecs=...)` seeks the "
    "smallest eigenvalue"
)
"""With the name of the method: without a factor it is `Lanczos`."""
MORE = "raise `max_seconds` or `max_bytes` for more"
"""In the notes of rows that limits cut short, and nowhere else: `resume` looks for it."""
CUT = f"less than usual: {MORE}"
"""Of a row that takes a quadrature where without limits its whole spectrum comes."""
SHORT = f"a few products: {{}}, and an estimate of the trace; {MORE}"
"""With what they tell of the largest eigenvalue."""
_WORDS = {
    Status.NON_FINITE: (
        "products are not finite: overflow (has it diverged? look at the parameters' norms), or a derivative that does "
        "not exist at this point (a root of 0)"
    ),
    Status.NOT_DETERMINISTIC: "the same product gave two different answers: fix the random key, or use inference mode",
    Status.NOT_LINEAR: "the product is not linear",
    Status.NOT_SYMMETRIC: "the product is not symmetric beyond rounding",
    Status.NOT_ADJOINT: "the transposed product is of another matrix beyond rounding",
    Status.NOT_CONFIRMED: "a random vector did not confirm the structure that was found: use `method=lh.Dense()`",
    Status.OUT_OF_RANGE: "eigenvalues lie outside the range of the dtype (kappa holds): scale the loss by a constant",
    Status.BUDGET_SPENT: "not converged within the budget of products: raise `max_matvecs`",
    Status.INVARIANT_SUBSPACE: "multiplicities are not seen",
    Status.RANK_UNCERTAIN: "no clear gap at the rank cutoff",
    Status.ZERO: "no curvature, H = 0",
}
_INDEFINITE = {
    "gauss_newton": (
        "indefinite: the loss is not convex in the outputs here{}, so there is no kappa_plus; give the loss logits, or "
        "analyze the blocks below"
    ),
    "full": 'indefinite, as a full local Hessian may be: there is no kappa_plus; that of `part="gauss_newton"` exists',
    "residual": "indefinite, as a residual part is: it has no kappa_plus",
}
Blame: TypeAlias = Callable[[], Sequence[int]]
"""() -> the samples whose loss is not convex."""


def nobody() -> Sequence[int]:
    """None is known."""
    return ()


def words_of(status: Status, part: Part, which: Sequence[int] = ()) -> str:
    """The reason behind a status; `which`: the samples whose loss is not convex, where they are known."""
    if status is Status.INDEFINITE:
        return _INDEFINITE[part].format(f" ({_samples(which)})" if len(which) else "")
    return _WORDS[status]


def note_of(kappa: ConditionNumber, part: Part, samples: int | Sequence[int], blame: Blame = nobody) -> str:
    """What is missing or doubtful, the worst first.

    Args:
        kappa: Of one matrix, or of several samples.
        part: Of the local Hessian.
        samples: How many entered one matrix; or the indices of samples, each with a matrix of its own.
        blame: Asked for one matrix that is indefinite.
    """
    codes = np.ravel(np.asarray(kappa.status))
    words = []
    for status in SEVERITY:
        at = np.flatnonzero(codes == status)
        if not len(at) or status is Status.CONVERGED:
            continue
        if isinstance(samples, int) or len(codes) == 1:
            words.append(words_of(status, part, blame() if status is Status.INDEFINITE else ()))
        else:
            some = f" ({_indices([samples[int(i)] for i in at])})" if len(at) < len(codes) else ""
            words.append(f"{len(at)} of {len(codes)} samples{some}: {words_of(status, part)}")
    missed = float(np.max(np.asarray(kappa.failure_probability)))
    if missed > LIKELY and not (codes == Status.ZERO).all():
        words.append(f"lambda_max may be missed by a tenth with probability {missed:.2g}")
    return "; ".join(words)


def _samples(which: Sequence[int]) -> str:
    return f"sample {which[0]}" if len(which) == 1 else f"samples {_indices(which)}"


def _indices(which: Sequence[int]) -> str:
    return ", ".join(map(str, which[:LISTED])) + (", ..." if len(which) > LISTED else "")


def not_convex(matching: BackMatching) -> tuple[int, ...]:
    """The samples whose loss Hessian at the outputs has a negative eigenvalue; none where there are too many outputs.

    Cost: a product with the loss Hessian for each output of a sample.
    """
    z = matching.activations[-1]
    rows, unravel = ravel_samples(floating_leaves(z))
    if rows.shape[1] > MAX_OUTPUTS:
        return ()
    product = loss_hessian(matching.loss, z, matching.y)
    units = (jnp.zeros_like(rows).at[:, j].set(1) for j in range(rows.shape[1]))
    columns = [np.asarray(ravel_samples(product(unravel(unit)))[0], np.float64) for unit in units]
    matrices = np.stack(columns, axis=-1)
    if not np.isfinite(matrices).all():
        return ()
    with threads_that_pay(rows.shape[1] ** 2):
        values = np.linalg.eigvalsh((matrices + matrices.swapaxes(1, 2)) / 2)
    rounding = noise(rows.dtype) * np.abs(values).max(axis=1)
    return tuple(int(i) for i in np.flatnonzero(values[:, 0] < -rounding))
