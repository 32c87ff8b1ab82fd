"""Operators of a user's own, from their products."""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._arguments import expect, expect_function, short
from localhessian._memory import as_key
from localhessian._tree import is_concrete, pytree, to_device
from localhessian._types import Array, Float
from localhessian.linalg.operators._operators import LinearMap, SymmetricOperator
from localhessian.linalg.operators._rounding import eps_of, skewed


@pytree
class OwnMap(LinearMap):
    """A linear map by two functions."""

    forward: Partial
    backward: Partial | None
    """None: the transpose of the forward one."""
    on_trust = True

    def product(self, v: Float[Array, " d"], /) -> Float[Array, " m"]:
        """A v."""
        return cast(Array, self.forward(v))

    def transpose_product(self, u: Float[Array, " m"], /) -> Float[Array, " d"]:
        """A^T u."""
        if self.backward is None:
            return cast(Array, jax.linear_transpose(self.forward, jax.ShapeDtypeStruct((self.size,), self.dtype))(u)[0])
        return cast(Array, self.backward(u))


@pytree
class Own(SymmetricOperator):
    """A symmetric operator by a function, and its factor if there is one."""

    function: Partial
    given: LinearMap | None
    on_trust = True

    @property
    def factor(self) -> LinearMap | None:
        """As given."""
        return self.given

    def product(self, v: Float[Array, " d"], /) -> Float[Array, " d"]:
        """H v."""
        return cast(Array, self.function(v))


def symmetric_operator(
    mv: Callable[..., Any], size: int, /, *, dtype: Any = None, factor: LinearMap | None = None
) -> SymmetricOperator:
    """A symmetric operator of your own, from its product.

    Args:
        mv: Maps a vector of shape `(size,)` to H v of the same shape. To make it data instead of configuration (so
            that new numbers of the same shapes do not recompile), pass a `jax.tree_util.Partial` over its arrays.
        size: The order of H.
        dtype: Of the vectors; default `float32`, or `float64` where JAX has it enabled.
        factor: R with H = R^T R, if you have it: it makes the small end of the spectrum accurate.

    Returns:
        A pytree that `lh.spectrum` and `lh.trace` accept.

    Raises:
        TypeError: `factor` is no linear map.
        ValueError: `size` is not positive; `factor` has another size, or its R^T R another product; at the first
            product: `mv` gives another shape, or no real floats.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> diagonal = jnp.array([1.0, 2.0, 5.0])
        >>> H = lh.symmetric_operator(lambda v: diagonal * v, 3)
        >>> print(lh.spectrum(H).eigenvalues)
        [1. 2. 5.]
    """
    expect_function("mv", mv)
    _check_size("size", size)
    operator = Own(Partial(_Checked("mv", size, size), _partial(mv)), factor, size=size, dtype=_dtype(dtype))
    if factor is not None:
        _check_factor(operator, factor)
    return operator


def _check_factor(operator: SymmetricOperator, factor: LinearMap) -> None:
    """Refuse what is not the factor; one product settles it where there are numbers."""
    expect("factor", factor, LinearMap, "a linear map R with H = R^T R (`lh.linear_map`)")
    if factor.in_size != operator.size or factor.batch is not None:
        raise ValueError(
            f"`factor` takes vectors of size {factor.in_size}, and the operator is of size {operator.size}: pass one R "
            "with H = R^T R."
        )
    if not is_concrete(operator):
        return
    v = np.random.default_rng(0).standard_normal(operator.size)
    products = operator.mv(to_device(v, operator.dtype)), factor.rmv(factor.mv(to_device(v, factor.dtype)))
    if not is_concrete(products):  # a closure holds traced values
        return
    ours, theirs = (np.asarray(product, np.float64) for product in products)
    apart, norm = np.linalg.norm(ours - theirs), max(np.linalg.norm(ours), np.linalg.norm(theirs))
    if apart > skewed(max(eps_of(dtype) for dtype in (operator.dtype, factor.dtype))) * norm:
        raise ValueError(
            f"`factor` is not the operator's: R^T R v and H v of a random v differ by {apart / norm:.1g} of their "
            "size. Pass R with H = R^T R, or leave `factor` out."
        )


def linear_map(
    mv: Callable[..., Any], rmv: Callable[..., Any] | None, in_size: int, out_size: int, /, *, dtype: Any = None
) -> LinearMap:
    """A linear map of your own, from its products.

    Args:
        mv: Maps a vector of shape `(in_size,)` to A v of shape `(out_size,)`.
        rmv: Maps a vector of shape `(out_size,)` to A^T u of shape `(in_size,)`; None derives it from `mv` by
            `jax.linear_transpose`.
        in_size: Columns of A.
        out_size: Rows of A.
        dtype: Of the vectors; default `float32`, or `float64` where JAX has it enabled.

    Returns:
        A pytree; `lh.spectrum` of it is the spectrum of A^T A, with the singular values of A.

    Raises:
        ValueError: a size is not positive; at the first product: it gives another shape, or no real floats.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> A = jnp.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> print(lh.spectrum(lh.linear_map(lambda v: A @ v, lambda u: A.T @ u, 2, 3)).singular_values)
        [2. 3.]
    """
    expect_function("mv", mv)
    if rmv is not None:
        expect_function("rmv", rmv)
    _check_size("in_size", in_size)
    _check_size("out_size", out_size)
    dtype = _dtype(dtype)
    forward = Partial(_Checked("mv", in_size, out_size), _partial(mv))
    backward = None if rmv is None else Partial(_Checked("rmv", out_size, in_size), _partial(rmv))
    return OwnMap(forward, backward, size=in_size, out_size=out_size, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A product that is refused, when it is traced, if what it gives is not what it should."""

    name: str
    size: int
    wanted: int

    def __call__(self, product: Partial, v: Any) -> Any:
        found = product(v)
        if getattr(found, "shape", None) == (self.wanted,) and jnp.issubdtype(found.dtype, jnp.floating):
            return found
        got = f"{found.dtype} of shape {found.shape}" if hasattr(found, "shape") else type(found).__name__
        raise ValueError(
            f"`{self.name}` must map a vector of shape ({self.size},) to real floats of shape ({self.wanted},), "
            f"got {got}."
        )


def _partial(function: Callable[..., Any]) -> Partial:
    return function if isinstance(function, Partial) else Partial(as_key(function, "the product"))


def _dtype(dtype: Any) -> jnp.dtype:
    config: Any = jax.config
    try:
        is_array = isinstance(dtype, jax.Array | np.ndarray)
        found = None if is_array else jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise TypeError(f"`dtype` must be a type of real floats, as `jnp.float32`, got {short(dtype)}.")
    if jnp.finfo(found).bits > 32 and not config.jax_enable_x64:
        raise ValueError(
            f"`dtype` is {found}, and JAX has 64 bits disabled: set `jax_enable_x64`, or leave `dtype` out."
        )
    return found


def _check_size(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be a positive integer, got {short(value)}.")
    if int(value) < 1:
        raise ValueError(f"`{name}` must be a positive integer, got {value}.")
