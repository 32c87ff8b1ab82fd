"""Result codes: how a computation ended, as integers that survive `jax.jit`."""

import enum

import numpy as np


class Status(enum.IntEnum):
    """How an iterative or exact computation ended.

    A code is an integer, so it can be an array element under `jax.jit` and `jax.vmap`; on the host
    `Status(int(code))` names it and `.message` says what happened, why it usually happens and what to do.
    """

    CONVERGED = 0
    BUDGET_SPENT = 1
    INVARIANT_SUBSPACE = 2
    NON_FINITE = 3
    NOT_SYMMETRIC = 4
    NOT_DETERMINISTIC = 5
    INDEFINITE = 6
    RANK_UNCERTAIN = 7
    NOT_ADJOINT = 8
    REJECTED = 9
    NOT_AFFINE = 10
    ZERO = 11
    OUT_OF_RANGE = 12
    NOT_LINEAR = 13
    FAILED = 14
    INTERRUPTED = 15
    NOT_CONFIRMED = 16
    SKIPPED = 17

    @property
    def message(self) -> str:
        """One sentence for a person: what happened, why it usually happens, what to pass instead."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "Every returned value met the tolerance.",
    Status.BUDGET_SPENT: (
        "The matvec budget was spent before every returned value met the tolerance: the values are estimates with the "
        "residual norms given. Raise `max_matvecs`, loosen `rtol`, or use an exact method."
    ),
    Status.INVARIANT_SUBSPACE: (
        "The Krylov space became invariant before the whole spectrum was seen: the values returned are exact, but "
        "eigenvalues with no component in the start vector, and multiplicities, are not seen."
    ),
    Status.NON_FINITE: (
        "A product with the operator was not finite. Usually the parameters or the data hold NaN or infinity, or the "
        "model overflows its dtype."
    ),
    Status.NOT_SYMMETRIC: (
        "The operator is not symmetric: <u, Hv> and <v, Hu> differ by more than rounding. Pass a symmetric operator, "
        "or a `linear_map` whose A^T A is meant."
    ),
    Status.NOT_DETERMINISTIC: (
        "The same product gave two different answers. Fix the random key of the model (dropout), or use inference mode."
    ),
    Status.INDEFINITE: (
        "An eigenvalue lies below the negative cutoff, so the matrix is indefinite and kappa_plus has no meaning; "
        "`whole` is max|lambda| / min|lambda|. Analyze the Gauss-Newton part for a semi-definite matrix."
    ),
    Status.NOT_ADJOINT: (
        "The transposed product does not belong to the product: <u, Av> and <A^T u, v> differ by more than rounding. "
        "Correct `rmv`, or pass `rmv=None` to derive it."
    ),
    Status.RANK_UNCERTAIN: (
        "No clear gap separates zero from non-zero singular values at the cutoff, so the rank and kappa_plus hang on "
        "`rtol`. Compare quantile condition numbers as well."
    ),
    Status.ZERO: (
        "The operator is zero (dead units, padding, a loss weight of zero), so it has no condition number and its rank "
        "is 0 (or its numbers lie below the smallest of its dtype). Look at what the block's output does to the loss."
    ),
    Status.FAILED: "The computation ended in an error; the note tells which. The other rows do not depend on it.",
    Status.INTERRUPTED: "Interrupted before it was done: the figures are those of the products made so far.",
    Status.OUT_OF_RANGE: (
        "Eigenvalues lie outside the range of the dtype: they overflow, or vanish where their roots do not. Condition "
        "numbers, which come from the singular values, hold; scale the loss by a constant, or compute in float64."
    ),
    Status.NOT_LINEAR: (
        "The product is not linear: H(u - 2v) differs from Hu - 2Hv by more than rounding. Pass the product of a "
        "matrix, as `jax.linearize` gives it."
    ),
    Status.NOT_CONFIRMED: (
        "A random vector did not confirm the structure that was found in the program: the operator's own product is "
        "not that of the blocks. Usually the product is not linear, or its factor is another's. Use `Dense()`, or an "
        "iterative method."
    ),
    Status.SKIPPED: (
        "No route fits the time or the memory that is left. Raise `max_seconds` or `max_bytes`, take fewer samples, or "
        "name a method."
    ),
    Status.REJECTED: (
        "The step found would have raised the back-matching loss, or was not finite, and was undone. Lower the rate or "
        "raise the damping of the solver."
    ),
    Status.NOT_AFFINE: (
        "The block is not affine in the variables, so the least-squares solution is that of its linearization, not the "
        "minimizer. Use `LevenbergMarquardt` or `GaussNewton`."
    ),
}


REFUSED = (
    Status.NON_FINITE,
    Status.NOT_LINEAR,
    Status.NOT_SYMMETRIC,
    Status.NOT_ADJOINT,
    Status.NOT_DETERMINISTIC,
    Status.NOT_CONFIRMED,
)
"""Of a spectrum whose numbers mean nothing."""


def quietly() -> np.errstate:
    """Numbers that are not finite are told by a status, not by warnings of NumPy."""
    return np.errstate(all="ignore")
