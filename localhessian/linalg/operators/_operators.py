"""Operators: matrix-free, immutable, pytrees; what each kind must say, and what follows from it.

An operator may stand for `s` independent operators of one shape (`batch = s`, one per sample or unit): its products
then take and give a leading axis `s`, and one product serves all of them.

A kind says how it multiplies (`product`, of a map also `transpose_product`), which its users trace; `mv` and `rmv` are
the same with their arguments checked, compiled. One that must set something up before it multiplies (a linearization)
does so in `prepare()`, so that loops pay for it once. What `prepare()` gives bears no label, so that equal blocks of a
network share programs.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from localhessian._arguments import expect, short
from localhessian._programs import compiled
from localhessian._tree import pytree, static
from localhessian._types import AnyArray, Array, Float
from localhessian.linalg.operators._cpu import run_quickly

HIGHEST = jax.lax.Precision.HIGHEST
_FORM = ("size", "out_size", "dtype", "batch", "label")


@pytree
class Operator(abc.ABC):
    """What multiplies vectors of `size` numbers: a linear map, or a symmetric matrix."""

    size: int = static(kw_only=True)
    """The length of the vectors that it multiplies."""
    dtype: jnp.dtype = static(kw_only=True)
    batch: int | None = static(kw_only=True, default=None)
    """How many independent operators this stands for; None for a single one, without the leading axis."""
    label: str = static(kw_only=True, default="")
    """What this is, for messages."""
    _kind: ClassVar[str]

    @abc.abstractmethod
    def product(self, v: Float[Array, "*s d"], /) -> Float[Array, "*s m"]:
        """The product with a vector, to be traced."""

    @property
    def in_programs(self) -> bool:
        """Whether it may stand in a compiled program; else it is multiplied on the host."""
        return True

    @property
    def on_trust(self) -> bool:
        """Whether nothing but a user's word says that its products are what they should be."""
        return False

    @property
    @abc.abstractmethod
    def factor(self) -> "LinearMap | None":
        """R with H = R^T R where one is known; None otherwise. A linear map is its own."""

    @property
    @abc.abstractmethod
    def symmetric(self) -> "SymmetricOperator":
        """The matrix whose spectrum is meant: itself, or A^T A of a linear map A."""

    def mv(self, v: Float[AnyArray, "*s d"], /) -> Float[Array, "*s m"]:
        """The product with a vector, compiled."""
        check_vector("v", v, self.size, self.batch)
        return cast(Array, call(_PRODUCT, self.prepare(), v))

    @abc.abstractmethod
    def prepare(self) -> "Operator":
        """The same operator with the set-up that its products share done once, and without a label."""

    @property
    def form(self) -> dict[str, Any]:
        """Its size, dtype, batch and label, of a map also out_size: what another of the same form is made with."""
        return {name: getattr(self, name) for name in _FORM if hasattr(self, name)}

    @property
    @abc.abstractmethod
    def _shape(self) -> str:
        """For its line."""

    def __repr__(self) -> str:
        """Its label, order and dtype; its numbers may be the whole network's."""
        parts = [
            self.label,
            self._shape,
            jnp.dtype(self.dtype).name,
            "" if self.batch is None else f"batch of {self.batch}",
        ]
        return f"{self._kind}({', '.join(part for part in parts if part)})"


@pytree
class LinearMap(Operator):
    """A linear map A from R^size to R^out_size, known by its products; `batch` of them when it is not None."""

    out_size: int = static(kw_only=True)
    _kind: ClassVar[str] = "LinearMap"

    @abc.abstractmethod
    def transpose_product(self, u: Float[Array, "*s m"], /) -> Float[Array, "*s d"]:
        """A^T u, to be traced."""

    @property
    def in_size(self) -> int:
        """The length of the vectors that it multiplies: `size`."""
        return self.size

    @property
    def factor(self) -> "LinearMap":
        """Itself: its spectrum is that of A^T A."""
        return self

    @property
    def symmetric(self) -> "SymmetricOperator":
        """A^T A."""
        return gram(self)

    def prepare(self) -> "LinearMap":
        """The same map with the set-up that its products share done once, and without a label."""
        return dataclasses.replace(self, label="") if self.label else self

    def rmv(self, u: Float[AnyArray, "*s m"], /) -> Float[Array, "*s d"]:
        """A^T u, compiled."""
        check_vector("u", u, self.out_size, self.batch)
        return cast(Array, call(_TRANSPOSE_PRODUCT, self.prepare(), u))

    @property
    def T(self) -> "LinearMap":
        """The transpose."""
        return Transposed(
            self, size=self.out_size, out_size=self.size, dtype=self.dtype, batch=self.batch, label=self.label
        )

    def to_dense(self) -> Float[Array, "*s m d"]:
        """The matrix, from products with the unit vectors of the smaller side.

        Cost: min(m, d) products in one batched call; memory `m * d` numbers per map.
        """
        prepared = self.prepare()
        if self.size <= self.out_size:
            return jnp.moveaxis(unit_products(prepared), 0, -1)
        return jnp.moveaxis(unit_products(prepared.T), 0, -2)

    @property
    def _shape(self) -> str:
        return f"{self.out_size} x {self.size}"


@pytree
class SymmetricOperator(Operator):
    """A symmetric matrix H of order `size`, known by its products; `batch` of them when it is not None."""

    _kind: ClassVar[str] = "SymmetricOperator"

    @property
    def factor(self) -> LinearMap | None:
        """R with H = R^T R where one is known; None otherwise."""
        return None

    @property
    def symmetric(self) -> "SymmetricOperator":
        """Itself."""
        return self

    def prepare(self) -> "SymmetricOperator":
        """The same operator with the set-up that its products share done once, and without a label."""
        return dataclasses.replace(self, label="") if self.label else self

    def to_dense(self) -> Float[Array, "*s d d"]:
        """The matrix, by `size` products in one batched call; memory `size**2` numbers per operator."""
        return jnp.moveaxis(unit_products(self.prepare()), 0, -1)

    @property
    def _shape(self) -> str:
        return f"order {self.size}"


@pytree
class Transposed(LinearMap):
    """A^T of a linear map A, by A's own programs."""

    of: LinearMap

    def product(self, v: Float[Array, "*s d"], /) -> Float[Array, "*s m"]:
        """A^T v."""
        return self.of.transpose_product(v)

    def transpose_product(self, u: Float[Array, "*s m"], /) -> Float[Array, "*s d"]:
        """A u."""
        return self.of.product(u)

    def mv(self, v: Float[AnyArray, "*s d"], /) -> Float[Array, "*s m"]:
        """A^T v, compiled."""
        check_vector("v", v, self.size, self.batch)
        return self.of.rmv(v)

    def rmv(self, u: Float[AnyArray, "*s m"], /) -> Float[Array, "*s d"]:
        """A u, compiled."""
        check_vector("u", u, self.out_size, self.batch)
        return self.of.mv(u)

    def prepare(self) -> LinearMap:
        """With A's set-up done."""
        return self.of.prepare().T

    @property
    def T(self) -> LinearMap:
        """A."""
        return self.of

    @property
    def on_trust(self) -> bool:
        """As A."""
        return self.of.on_trust


@pytree
class Gram(SymmetricOperator):
    """H = R^T R of a linear map R."""

    of: LinearMap

    @property
    def factor(self) -> LinearMap:
        """R."""
        return self.of

    def product(self, v: Float[Array, "*s d"], /) -> Float[Array, "*s d"]:
        """R^T R v."""
        prepared = self.of.prepare()
        return prepared.transpose_product(prepared.product(v))

    def mv(self, v: Float[AnyArray, "*s d"], /) -> Float[Array, "*s d"]:
        """R^T R v by R's own two programs, which all that multiplies by R shares."""
        check_vector("v", v, self.size, self.batch)
        prepared = self.of.prepare()
        return prepared.rmv(prepared.mv(v))

    def prepare(self) -> SymmetricOperator:
        """With R's set-up done."""
        prepared = self.of.prepare()
        return self if prepared is self.of and not self.label else gram(prepared)


def gram(factor: LinearMap, /, *, label: str = "") -> SymmetricOperator:
    """H = R^T R of a linear map R."""
    return Gram(factor, size=factor.size, dtype=factor.dtype, batch=factor.batch, label=label or factor.label)


@compiled
def call(function: Partial, *args: Any) -> Any:
    """A function and its data, compiled once for each function and shapes, not for each data."""
    return run_quickly(function, *args)


_PRODUCT = Partial(lambda operator, v: operator.product(v))
_TRANSPOSE_PRODUCT = Partial(lambda operator, u: operator.transpose_product(u))


def unit_products(prepared: Operator, start: Any = 0, count: int | None = None) -> Array:
    """Products with the unit vectors `start .. start + count`, stacked on axis 0; every map of a batch gets them."""
    return cast(Array, _unit_products(prepared, start, prepared.size if count is None else count))


@compiled(static_argnums=2)
def _unit_products(prepared: Operator, start: Any, count: Any) -> Any:
    units = jax.nn.one_hot(start + jnp.arange(count), prepared.size, dtype=prepared.dtype)
    if prepared.batch is not None:
        units = jnp.broadcast_to(units[:, None, :], (count, prepared.batch, prepared.size))
    return run_quickly(Partial(jax.vmap(prepared.product)), units)


def rows_of(product: Callable[[Array], Array], batch: int | None) -> Callable[[Array], Array]:
    """The product on vectors with the leading axis s."""
    return product if batch is not None else lambda v: product(v[0])[None]


def unbatched(value: Any, batch: int | None) -> Any:
    """Without the leading axis s where there is a single problem."""
    return value if batch is not None or value is None else value[0]


def check_operator(operator: Any) -> None:
    """Refuse what is no operator (TypeError)."""
    expect(
        "operator",
        operator,
        Operator,
        "an operator, as `lh.local_hessian`, `lh.symmetric_operator` and `lh.linear_map` give one",
    )


def check_vector(name: str, value: Any, size: int, batch: int | None) -> None:
    """Refuse what an operator cannot multiply."""
    shape = (size,) if batch is None else (batch, size)
    if getattr(value, "shape", None) != shape or not hasattr(value, "dtype"):
        raise ValueError(f"`{name}` must be an array of shape {shape}, got {short(value)}.")
