"""Linear maps and symmetric operators: matrix-free, immutable, pytrees.

An operator may stand for `s` independent operators of one shape (`batch = s`, one per sample or unit): its products
then take and give a leading axis `s`, and one product serves all of them.

Operators that must set something up before they multiply (a linearization) do so in `prepare()`, so that loops pay
for it once; products of an unprepared operator prepare themselves each time.
"""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from localhessian._arguments import expect, expect_function, short
from localhessian._memory import as_key
from localhessian._programs import compiled
from localhessian._tree import is_concrete, pytree, static
from localhessian._types import Array, Float
from localhessian.linalg.operators._cpu import run_quickly
from localhessian.linalg.operators._rounding import skewed

HIGHEST = jax.lax.Precision.HIGHEST


@pytree
class LinearMap:
    """A linear map A from R^in_size to R^out_size, known by its products; `batch` of them when it is not None."""

    forward: Partial
    """v -> A v."""
    backward: Partial
    """u -> A^T u."""
    setup: Partial | None
    """() -> the same map with the work that its products share done; None when there is none."""
    in_size: int = static()
    out_size: int = static()
    dtype: jnp.dtype = static()
    batch: int | None = static(default=None)
    """How many independent maps this stands for; None for a single one, without the leading axis."""
    label: str = static(default="")
    """What this is, for messages."""

    def mv(self, v: Float[Array, "*s d"], /) -> Float[Array, "*s m"]:
        """A v, compiled."""
        _check_vector("v", v, self.in_size, self.batch)
        return call(self.forward, v)

    def rmv(self, u: Float[Array, "*s m"], /) -> Float[Array, "*s d"]:
        """A^T u, compiled."""
        _check_vector("u", u, self.out_size, self.batch)
        return call(self.backward, u)

    def prepare(self) -> "LinearMap":
        """The same map with the set-up that its products share done once."""
        return self if self.setup is None else self.setup()

    @property
    def T(self) -> "LinearMap":
        """The transpose."""
        setup = None if self.setup is None else Partial(_prepared_transpose, self.setup)
        return LinearMap(
            self.backward, self.forward, setup, self.out_size, self.in_size, self.dtype, self.batch, self.label
        )

    def __repr__(self) -> str:
        """Its label, order and dtype; its numbers may be the whole network's."""
        return _in_words("LinearMap", self.label, f"{self.out_size} x {self.in_size}", self.dtype, self.batch)

    def to_dense(self) -> Float[Array, "*s m d"]:
        """The matrix, from products with the unit vectors of the smaller side.

        Cost: min(m, d) products in one batched call; memory `m * d` numbers per map.
        """
        prepared = self.prepare()
        if self.in_size <= self.out_size:
            return jnp.moveaxis(unit_products(prepared.forward, self.in_size, self.batch, self.dtype), 0, -1)
        return jnp.moveaxis(unit_products(prepared.backward, self.out_size, self.batch, self.dtype), 0, -2)


@pytree
class SymmetricOperator:
    """A symmetric matrix H of order `size`, known by its products; `batch` of them when it is not None."""

    product: Partial
    """v -> H v."""
    factor: LinearMap | None
    """R with H = R^T R where one is known; None otherwise."""
    setup: Partial | None
    """() -> the same operator with the work that its products share done; None when there is none."""
    size: int = static()
    dtype: jnp.dtype = static()
    batch: int | None = static(default=None)
    """How many independent operators this stands for; None for a single one, without the leading axis."""
    label: str = static(default="")
    """What this is, for messages."""

    def mv(self, v: Float[Array, "*s d"], /) -> Float[Array, "*s d"]:
        """H v, compiled; R^T R v by R's own two programs, which all that multiplies by R shares."""
        _check_vector("v", v, self.size, self.batch)
        if self.factor is not None and self.product.func is _gram_product:
            prepared = self.factor.prepare()
            return prepared.rmv(prepared.mv(v))
        return call(self.product, v)

    def prepare(self) -> "SymmetricOperator":
        """The same operator with the set-up that its products share done once."""
        return self if self.setup is None else self.setup()

    def __repr__(self) -> str:
        """Its label, order and dtype; its numbers may be the whole network's."""
        return _in_words("SymmetricOperator", self.label, f"order {self.size}", self.dtype, self.batch)

    def to_dense(self) -> Float[Array, "*s d d"]:
        """The matrix, by `size` products in one batched call; memory `size**2` numbers per operator."""
        return jnp.moveaxis(unit_products(self.prepare().product, self.size, self.batch, self.dtype), 0, -1)


def _in_words(kind: str, label: str, shape: str, dtype: jnp.dtype, batch: int | None) -> str:
    parts = [label, shape, jnp.dtype(dtype).name, "" if batch is None else f"batch of {batch}"]
    return f"{kind}({', '.join(part for part in parts if part)})"


@compiled
def call(function: Partial, *args):
    """A function and its data, compiled once for each function and shapes, not for each data."""
    return run_quickly(function, *args)


def unit_products(
    product: Partial, size: int, batch: int | None, dtype: jnp.dtype, start: Any = 0, count: int | None = None
) -> Array:
    """Products with the unit vectors `start .. start + count`, stacked on axis 0; every map of a batch gets them."""
    return _unit_products(product, start, size, batch, dtype, size if count is None else count)


@compiled(static_argnums=(2, 3, 4, 5))
def _unit_products(product, start, size, batch, dtype, count):
    units = jax.nn.one_hot(start + jnp.arange(count), size, dtype=dtype)
    if batch is not None:
        units = jnp.broadcast_to(units[:, None, :], (count, batch, size))
    return run_quickly(Partial(jax.vmap(product)), units)


def gram(factor: LinearMap, /, *, label: str = "") -> SymmetricOperator:
    """H = R^T R of a linear map R."""
    setup = None if factor.setup is None else Partial(_prepared_gram, factor.setup)
    product = Partial(_gram_product, factor)
    return SymmetricOperator(product, factor, setup, factor.in_size, factor.dtype, factor.batch, label or factor.label)


def _gram_product(factor: LinearMap, v):
    prepared = factor.prepare()
    return prepared.backward(prepared.forward(v))


def _prepared_gram(setup: Partial) -> SymmetricOperator:
    return gram(setup())


def _prepared_transpose(setup: Partial) -> LinearMap:
    return setup().T


def lazy_map(
    setup: Partial, in_size: int, out_size: int, dtype: jnp.dtype, batch: int | None = None, label: str = ""
) -> LinearMap:
    """A linear map whose products need a set-up: `setup()`, compiled or not, gives the map with the set-up done."""
    forward, backward = Partial(_set_up_forward, setup), Partial(_set_up_backward, setup)
    return LinearMap(forward, backward, setup, in_size, out_size, dtype, batch, label)


def lazy_operator(
    setup: Partial, size: int, dtype: jnp.dtype, batch: int | None = None, label: str = ""
) -> SymmetricOperator:
    """A symmetric operator whose products need a set-up: `setup()`, compiled or not, gives it with the set-up done."""
    return SymmetricOperator(Partial(_set_up_product, setup), None, setup, size, dtype, batch, label)


def _set_up_forward(setup: Partial, v):
    return setup().forward(v)


def _set_up_backward(setup: Partial, u):
    return setup().backward(u)


def _set_up_product(setup: Partial, v):
    return setup().product(v)


def symmetric_operator(
    mv: Callable, size: int, /, *, dtype: Any = None, factor: LinearMap | None = None
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
    product = Partial(_Checked("mv", size, size), _partial(mv))
    operator = SymmetricOperator(product, factor, None, size, _dtype(dtype))
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
    products = operator.mv(jnp.asarray(v, operator.dtype)), factor.rmv(factor.mv(jnp.asarray(v, factor.dtype)))
    if not is_concrete(products):  # a closure holds traced values
        return
    ours, theirs = (np.asarray(product, np.float64) for product in products)
    apart, norm = np.linalg.norm(ours - theirs), max(np.linalg.norm(ours), np.linalg.norm(theirs))
    if apart > skewed(max(float(jnp.finfo(dtype).eps) for dtype in (operator.dtype, factor.dtype))) * norm:
        raise ValueError(
            f"`factor` is not the operator's: R^T R v and H v of a random v differ by {apart / norm:.1g} of their "
            "size. Pass R with H = R^T R, or leave `factor` out."
        )


def linear_map(mv: Callable, rmv: Callable | None, in_size: int, out_size: int, /, *, dtype: Any = None) -> LinearMap:
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
    if rmv is None:
        rmv = Partial(_Transposed(in_size, dtype), _partial(mv))
    forward = Partial(_Checked("mv", in_size, out_size), _partial(mv))
    backward = Partial(_Checked("rmv", out_size, in_size), _partial(rmv))
    return LinearMap(forward, backward, None, in_size, out_size, dtype)


def matrix_map(matrix: Float[Array, "*s m d"], /) -> LinearMap:
    """The linear map of an explicit matrix, or of a batch of them; products in full precision."""
    *lead, m, d = matrix.shape
    forward, backward = Partial(_matrix_vector, matrix), Partial(_vector_matrix, matrix)
    return LinearMap(forward, backward, None, d, m, matrix.dtype, lead[0] if lead else None)


def _matrix_vector(matrix, v):
    return jnp.einsum("...md,...d->...m", matrix, v, precision=HIGHEST)


def _vector_matrix(matrix, u):
    return jnp.einsum("...md,...m->...d", matrix, u, precision=HIGHEST)


@dataclasses.dataclass(frozen=True)
class _Transposed:
    """The transpose of a linear function on vectors, hashable."""

    in_size: int
    dtype: jnp.dtype

    def __call__(self, forward: Partial, u):
        return jax.linear_transpose(forward, jax.ShapeDtypeStruct((self.in_size,), self.dtype))(u)[0]


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A product that is refused, when it is traced, if what it gives is not what it should."""

    name: str
    size: int
    wanted: int

    def __call__(self, product: Partial, v):
        found = product(v)
        if getattr(found, "shape", None) == (self.wanted,) and jnp.issubdtype(found.dtype, jnp.floating):
            return found
        got = f"{found.dtype} of shape {found.shape}" if hasattr(found, "shape") else type(found).__name__
        raise ValueError(
            f"`{self.name}` must map a vector of shape ({self.size},) to real floats of shape ({self.wanted},), "
            f"got {got}."
        )


def check_operator(operator: Any) -> None:
    """Refuse what is no operator.

    Raises:
        TypeError: it is something else.
    """
    wanted = "an operator, as `lh.local_hessian`, `lh.symmetric_operator` and `lh.linear_map` give one"
    expect("operator", operator, (LinearMap, SymmetricOperator), wanted)


def is_own_product(product: Partial) -> bool:
    """Whether a product was given by the user, so that nothing but trust says what it is."""
    return isinstance(product.func, _Checked)


def is_of_a_user(operator: LinearMap) -> bool:
    """Whether both products were given, so that nothing but trust says that they belong to each other."""
    return all(is_own_product(product) for product in (operator.forward, operator.backward))


def _partial(function: Callable) -> Partial:
    return function if isinstance(function, Partial) else Partial(as_key(function, "the product"))


def _dtype(dtype: Any) -> jnp.dtype:
    config: Any = jax.config
    try:
        is_array = isinstance(dtype, jax.Array | np.ndarray)
        found = None if is_array else jnp.dtype(jnp.zeros(()).dtype if dtype is None else dtype)
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


def _check_vector(name: str, value: Any, size: int, batch: int | None) -> None:
    shape = (size,) if batch is None else (batch, size)
    if getattr(value, "shape", None) != shape or not hasattr(value, "dtype"):
        raise ValueError(f"`{name}` must be an array of shape {shape}, got {short(value)}.")
