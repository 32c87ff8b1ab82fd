"""Pytrees at the door: immutable data classes, flat vectors, and the batch axis."""

import dataclasses
import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from localhessian._brief import brief
from localhessian._mesh import is_elsewhere, is_traced

T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """A field that is configuration, hashed by `jax.jit`, instead of data."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass that is a pytree; fields made by `static()` are its configuration.

    It prints in brief, and equals itself only: its fields are arrays.
    """
    frozen: Any = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    if frozen.__repr__ is object.__repr__:
        frozen.__repr__ = brief
    return jax.tree_util.register_dataclass(frozen)


def ravel(tree: PyTree) -> tuple[Float[Array, " d"], Callable[[Float[Array, " d"]], PyTree]]:
    """Flatten to one vector in the order of `jax.flatten_util.ravel_pytree`, with the way back."""
    return ravel_pytree(tree)


def ravel_samples(tree: PyTree) -> tuple[Float[Array, "s d"], Callable[[Float[Array, "s d"]], PyTree]]:
    """Flatten every sample to one row, leaves in pytree order, with the way back."""
    leaves, treedef = jax.tree.flatten(tree)
    shapes = [leaf.shape for leaf in leaves]
    dtypes = [leaf.dtype for leaf in leaves]
    splits = np.cumsum([math.prod(shape[1:]) for shape in shapes])[:-1].tolist()

    def unravel(rows: Float[Array, "s d"]) -> PyTree:
        parts = jnp.split(rows, splits, axis=1)
        return jax.tree.unflatten(
            treedef,
            [part.reshape(shape).astype(dtype) for part, shape, dtype in zip(parts, shapes, dtypes, strict=True)],
        )

    return sample_rows(leaves), unravel


def size(tree: PyTree) -> int:
    """The number of scalars in a pytree of arrays."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def is_concrete(*trees: PyTree) -> bool:
    """Whether every leaf holds numbers now and here, so that host code may branch on them.

    Not under jit or vmap, nor where only other processes have some of them.
    """
    return not (is_traced(*trees) or is_elsewhere(*trees))


def on_the_host(tree: T) -> tuple[ModuleType, T]:
    """NumPy, and arrays of float64, where there are numbers (nothing to compile); jax.numpy under transformations."""
    if not is_concrete(tree):
        return jnp, tree

    def widen(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return np, jax.tree.map(widen, tree)


def sample_rows(leaves: list[Any]) -> Any:
    """Leaves of samples as one row for each: by NumPy where all are NumPy's."""
    xp: Any = np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp
    rows = [xp.reshape(leaf, (len(leaf), -1)) for leaf in leaves]
    common = jnp.result_type(*rows)
    return xp.concatenate([part.astype(common) for part in rows], axis=1)


def to_device(values: Any, dtype: Any = None) -> Array:
    """Numbers of the host, cast by NumPy where a type is given: `jnp.asarray` has a program for each shape."""
    return jax.device_put(np.asarray(values, dtype))


def array_of(values: Any, dtype: Any = None) -> Array:
    """Of JAX, with nothing to compile for numbers of the host."""
    return jnp.asarray(values, dtype) if isinstance(values, jax.Array) else to_device(values, dtype)


def is_differentiable(tree: PyTree) -> bool:
    """Whether every leaf is a floating-point array (an integer leaf has no derivative)."""
    return all(map(is_floating, jax.tree.leaves(tree)))


def is_floating(leaf: Any) -> bool:
    """Whether an array (or a number) is of a floating-point type."""
    return _is_floating(leaf.dtype if isinstance(leaf, jax.Array | np.ndarray) else jnp.result_type(leaf))


@functools.lru_cache(1024)
def _is_floating(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def abstracted(tree: PyTree) -> tuple[Any, tuple[tuple[tuple[int, ...], Any], ...]]:
    """The structure of a pytree, and shape and type of every leaf: hashable, and quick to compare."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple(
        (leaf.shape, leaf.dtype)
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        else (jnp.shape(leaf), jnp.result_type(leaf))
        for leaf in leaves
    )


def of_shapes(treedef: Any, leaves: tuple[tuple[tuple[int, ...], Any], ...]) -> Any:
    """And back, to a pytree of shapes."""
    return jax.tree.unflatten(treedef, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in leaves])


def floating(tree: PyTree, keep: tuple[bool, ...] | None = None) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """The floating-point leaves, and the way back that fills in the others unchanged.

    Args:
        tree: Any pytree of arrays; integer leaves (tokens, counters) have no derivative and stay constant.
        keep: For each floating-point leaf, whether it is a variable; None keeps all.
    """
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]
    if keep is not None:
        places = [place for place, kept in zip(places, keep, strict=True) if kept]

    def rebuild(values: list[Array]) -> PyTree:
        filled = list(leaves)
        for place, value in zip(places, values, strict=True):
            filled[place] = value
        return jax.tree.unflatten(treedef, filled)

    found = [leaves[place] for place in places]
    return [leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for leaf in found], rebuild


def floating_leaves(tree: PyTree, keep: tuple[bool, ...] | None = None) -> list[Array]:
    """The same without the way back."""
    return floating(tree, keep)[0]


def raw_bytes(leaf: Any) -> bytes:
    """The bits of an array, or of a random key."""
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def shapes(tree: PyTree) -> str:
    """The shapes and dtypes of a pytree, for messages: `{'kernel': float32[3,4]}`."""
    short = jax.tree.map(lambda leaf: _Shape(jnp.shape(leaf), jnp.result_type(leaf)), tree)
    return str(short)


@dataclasses.dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]
    dtype: Any

    def __repr__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"
