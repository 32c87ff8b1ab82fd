"""What `lh.spectrum` will do with an operator, why, and what it will take."""

import dataclasses

from localhessian._arguments import expect, expect_here
from localhessian.linalg._cost import of_dense, of_iteration, of_structure
from localhessian.linalg._dense import Dense
from localhessian.linalg._solve import Method, unstructured
from localhessian.linalg.krylov import Krylov
from localhessian.linalg.operators import Operator, check_operator
from localhessian.linalg.structure import Declined, Structure, Structured


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
        An explanation to print. Predictions are operation counts over the rates of this machine, measured once and
        kept; of iterative methods, the whole budget of products.

    Cost: the search for structure, and otherwise some products; on a new machine seconds to measure its rates.

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
    expect_here("explain", operator)
    if structured is not None:
        expect("structured", structured, Structured, "a `lh.Structured(...)` or None")
    size = operator.size
    try:
        structured = structured or Structured()
        structure = structured.find(operator)
    except Declined as declined:
        method = unstructured(operator)
        cost = of_iteration(operator, method, method.max_matvecs) if isinstance(method, Krylov) else of_dense(operator)
        held = "the matrix would take too long" if Dense().fits(operator) else "the matrix is too large to hold"
        small = "the matrix fits" if isinstance(method, Dense) else held
        reason = f"no structure: {declined}; {small}"
        return Explanation(operator.label, size, operator.batch, method, reason, None, *cost)
    reason = str(structure)
    if structured.blocks is not None:
        cost = of_iteration(operator, structured.blocks, structured.blocks.max_matvecs)
    else:
        cost = of_structure(structure)
    return Explanation(operator.label, size, operator.batch, structured, reason, structure, *cost)
