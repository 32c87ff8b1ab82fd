"""Hutchinson's estimator: means over random signs."""

import dataclasses

import jax.numpy as jnp
from jax.tree_util import Partial

from localhessian._types import Array, Float, Key
from localhessian.linalg.operators import LinearMap, Operator, SymmetricOperator
from localhessian.linalg.stochastic._probes import (
    TraceEstimate,
    averaged,
    check_probes,
    each_probe,
    multiplied,
    random_signs,
    result,
)


@dataclasses.dataclass(frozen=True)
class Hutchinson:
    """Means over random signs v: the error falls as 1/sqrt(probes), whatever the spectrum.

    tr H = E v^T H v = E ||R v||^2,   tr H^2 = E ||H v||^2,   diag H = E v * (H v), elementwise

    Cost: `probes` products with H; for a trace with the factor alone where there is one, which saves half of each.
    Of each vector a number is kept (two for tr H^2, and for a diagonal d).

    Args:
        probes: How many vectors; an error bar needs 2, that of `lh.frobenius_norm` and `lh.range_mean` 3.

    Source: M. F. Hutchinson, Commun. Stat. Simul. Comput. 18 (1989) 1059.
    """

    probes: int = 32

    def __post_init__(self) -> None:
        """Refuse what is no number of vectors, and too few for an error bar."""
        check_probes(self.probes, 2)

    def trace(self, operator: Operator, key: Key) -> TraceEstimate:
        """tr(H) of a symmetric operator, tr(A^T A) of a linear map A; what `lh.trace` calls."""
        factor = operator.factor
        form = Partial(quadratic_form, operator.symmetric.prepare())
        if factor is not None:
            form = Partial(squared_length, factor.prepare())
        forms = each_probe(form, Partial(random_signs, key), self.probes, operator)
        return result(*averaged(forms), self.probes, False, operator)


def quadratic_form(operator: SymmetricOperator, v: Float[Array, "s d"]) -> Float[Array, " s"]:
    """v^T H v."""
    return jnp.sum(v * multiplied(operator, v), axis=-1)


def squared_length(factor: LinearMap, v: Float[Array, "s d"]) -> Float[Array, " s"]:
    """||R v||^2."""
    return jnp.sum(multiplied(factor, v) ** 2, axis=-1)
