"""Quantities of a whole spectrum, and the trace without one."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from localhessian._tree import is_concrete, pytree, static
from localhessian._types import Array, Float, Key
from localhessian.linalg._krylov import repeat, rows, unbatched
from localhessian.linalg._operators import LinearMap, SymmetricOperator, call
from localhessian.linalg._spectrum import Spectrum


@pytree
class Summary:
    """Robust figures of a spectrum to compare matrices by; of a batched spectrum, arrays `(s,)`."""

    trace: Float[Array, "*s"]
    """The sum of the eigenvalues."""
    mean: Float[Array, "*s"]
    """The mean eigenvalue, trace / size."""
    stable_rank: Float[Array, "*s"]
    """||H||_F^2 / max|lambda|^2, between 1 and the rank."""
    effective_rank: Float[Array, "*s"]
    """trace / max|lambda|; of a semi-definite matrix between the stable rank and the rank."""
    negative_fraction: Float[Array, "*s"]
    """The share of eigenvalues below `-100 * eps(dtype) * max|lambda|`."""


def summarize(spectrum: Spectrum, /) -> Summary:
    """Trace, mean eigenvalue, stable and effective rank, and the fraction of negative eigenvalues.

    Args:
        spectrum: A complete one, from `lh.spectrum`.

    Returns:
        Figures of the whole spectrum, multiplicities counted; NaN where it is incomplete (`lh.trace` estimates the
        trace without a spectrum). The ranks of the zero matrix are NaN. Works under `jax.jit` and `jax.vmap`.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> diagonal = jnp.array([4.0, 2.0, 2.0, 0.0])
        >>> summary = lh.summarize(lh.spectrum(lh.symmetric_operator(lambda v: diagonal * v, 4)))
        >>> print(round(float(summary.trace), 4), round(float(summary.effective_rank), 4))
        8.0 2.0
    """
    counts = spectrum.multiplicities.astype(spectrum.eigenvalues.dtype)
    values = jnp.where(spectrum.multiplicities > 0, spectrum.eigenvalues, 0)
    largest = jnp.max(jnp.abs(values), axis=-1)
    # Relative to the largest, so that the squares of vanishing or exploding signals are representable.
    relative = values / jnp.where(largest > 0, largest, 1)[..., None]
    trace = jnp.sum(counts * relative, axis=-1)
    squares = jnp.sum(counts * relative**2, axis=-1)
    cutoff = 0 if spectrum.singular_values is not None else 100 * float(jnp.finfo(spectrum.dtype).eps)
    negative = jnp.sum(jnp.where(relative < -cutoff, counts, 0), axis=-1)
    known = jnp.where(spectrum.complete, jnp.ones_like(largest), jnp.nan)
    ranked = jnp.where(largest > 0, known, jnp.nan)
    total = trace * largest * known
    return Summary(total, total / spectrum.size, squares * ranked, trace * ranked, negative / spectrum.size * known)


@pytree
class TraceEstimate:
    """A trace with its error bar; of a batched operator, arrays `(s,)`."""

    value: Float[Array, "*s"]
    """The mean over the probes: unbiased."""
    standard_error: Float[Array, "*s"]
    """Standard deviation of the mean, estimated from the probes; 0 where the trace is exact."""
    probes: int = static()
    """How many vectors were multiplied."""
    exact: bool = static()
    """Whether the probes were all unit vectors, so that only rounding is left."""


def trace(operator: LinearMap | SymmetricOperator, /, *, key: Key | None = None, probes: int = 32) -> TraceEstimate:
    r"""The trace of a symmetric operator, or of A^T A of a linear map A, by Hutchinson's estimator.

    $\mathrm{tr} H = E\, v^T H v = E\, \|R v\|^2$ for random signs v

    Args:
        operator: Any operator; batched operators give one estimate each.
        key: Of the random signs; default `jax.random.key(0)`.
        probes: How many vectors; where the operator is no larger than that, unit vectors give the exact trace.

    Returns:
        The estimate with its standard error. Works under `jax.jit` and `jax.vmap`.

    Raises:
        ValueError: `probes` is less than 2.

    Cost: one product with H for each probe, or one with the factor alone where there is one.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> print(lh.trace(lh.symmetric_operator(lambda v: jnp.array([3.0, 1.0]) * v, 2)).value)
        4.0

    Source: M. F. Hutchinson, Commun. Stat. Simul. Comput. 18 (1989) 1059.
    """
    if probes < 2:
        raise ValueError(f"`probes` must be at least 2 for an error bar, got {probes}.")
    if isinstance(operator, SymmetricOperator) and operator.factor is not None:
        operator = operator.factor
    size = operator.in_size if isinstance(operator, LinearMap) else operator.size
    form = Partial(_quadratic_form, operator.prepare())
    key = jax.random.key(0) if key is None else key
    exact = size <= probes
    count = size if exact else probes
    shape = (operator.batch or 1, size)
    vectors = Partial(_unit_vector if exact else _random_signs, key)
    forms = _forms(form, vectors, count, shape, operator.dtype)
    value = jnp.sum(forms, axis=0) if exact else jnp.mean(forms, axis=0)
    error = jnp.zeros_like(value) if exact else jnp.std(forms, axis=0, ddof=1) / count**0.5
    return TraceEstimate(unbatched(value, operator.batch), unbatched(error, operator.batch), count, exact)


def _forms(form: Partial, vectors: Partial, count: int, shape: tuple[int, int], dtype: Any) -> Float[Array, "p s"]:
    """v^T H v of every probe: driven from the host where there are numbers, compiled whole where not."""
    first = call(form, _probe_vector(vectors, 0, shape, dtype))
    if is_concrete(first):
        rest = [call(form, _probe_vector(vectors, i, shape, dtype)) for i in range(1, count)]
        return jnp.stack([first, *rest])

    def step(state):
        i, forms = state
        return i + 1, forms.at[i].set(form(_probe_vector(vectors, i, shape, dtype)))

    start = jnp.zeros((), jnp.int32), jnp.zeros((count, shape[0]), dtype)
    return repeat(step, start, count, lambda: form(_probe_vector(vectors, 0, shape, dtype)))[1]


def _quadratic_form(operator: LinearMap | SymmetricOperator, v: Float[Array, "s d"]) -> Float[Array, " s"]:
    if isinstance(operator, LinearMap):
        return jnp.sum(rows(operator.forward, operator.batch)(v) ** 2, axis=-1)
    return jnp.sum(v * rows(operator.product, operator.batch)(v), axis=-1)


@jax.jit(static_argnums=(2, 3))
def _probe_vector(vectors: Partial, i: Any, shape: tuple[int, int], dtype: Any) -> Float[Array, "s d"]:
    return vectors(i, shape, dtype)


def _random_signs(key: Key, i: Any, shape: tuple[int, int], dtype: Any) -> Float[Array, "s d"]:
    return jax.random.rademacher(jax.random.fold_in(key, i), shape, dtype)


def _unit_vector(key: Key, i: Any, shape: tuple[int, int], dtype: Any) -> Float[Array, "s d"]:
    del key
    return jnp.broadcast_to(jax.nn.one_hot(i, shape[1], dtype=dtype), shape)
