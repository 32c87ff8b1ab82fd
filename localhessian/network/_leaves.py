"""What may stand in parameters, inputs and context: arrays, real where they are differentiated."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from localhessian._tree import shapes
from localhessian._types import Activations, Context, Params

NARROWEST = 16
"""Bits of a number that has derivatives worth the name."""
_NUMBERS = (bool, int, float, complex, np.generic, np.ndarray)


def check_leaves(params: dict[str, Params], x: Activations, y: Any, context: Context) -> None:
    """Refuse what is no array, complex variables, and arrays that vary over a mesh axis by their type (ValueError)."""
    if all(map(_is_plain, jax.tree.leaves((list(params.values()), x, y, context)))):
        return
    parts = {f"the parameters of block `{name}`": value for name, value in params.items()}
    for what, tree in {**parts, "`x`": x, "`y`": y, "`context`": context}.items():
        check_arrays(what, tree)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            _check_type(what, path, jax.typeof(leaf))
    for what, tree in {**parts, "`x`": x}.items():
        check_real(what, tree)


def _is_plain(leaf: Any) -> bool:
    """Whether it is an array that may stand anywhere: nothing to look at more closely."""
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "biu" or (leaf.dtype.kind == "f" and 8 * leaf.dtype.itemsize >= NARROWEST)
    return isinstance(leaf, jax.Array) and _is_plain_type(jax.typeof(leaf))


@functools.lru_cache(1024)
def _is_plain_type(aval: Any) -> bool:
    try:
        _check_type("", (), aval)
        check_real("", aval)
    except ValueError:
        return False
    return True


def check_arrays(what: str, tree: Any) -> None:
    """Refuse leaves that are no arrays of numbers."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        kind = _no_numbers(leaf)
        if kind:
            raise ValueError(
                f"{what} must hold arrays of numbers only, got {kind}{_at(path)}: put what is no array into the "
                "function of the block (of an equinox module, `eqx.partition(module, eqx.is_array)` tells the two "
                "apart)."
            )


def check_samples(name: str, tree: Any) -> int:
    """The number of samples; a ValueError where there is no array, or no leading axis that all of them share."""
    check_arrays(f"`{name}`", tree)
    sizes = {leaf.shape[0] if getattr(leaf, "shape", ()) else None for leaf in jax.tree.leaves(tree)}
    n = next(iter(sizes), None)
    if len(sizes) != 1 or n is None:
        raise ValueError(
            f"`{name}` must hold arrays that share a leading axis of samples, got {shapes(tree)}: add the axis, or put "
            "what is not per sample into `context`."
        )
    return int(n)


def check_real(what: str, tree: Any) -> None:
    """Refuse complex arrays and those of less than 16 bits among what is differentiated."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(
                f"{what} must be real, got {jnp.result_type(leaf)}{_at(path)}: write it as a pair of reals "
                "(`z.real`, `z.imag`), which `jax.lax.complex` joins inside a block."
            )
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and jnp.finfo(jnp.result_type(leaf)).bits < NARROWEST:
            raise ValueError(
                f"{what} must have {NARROWEST} bits at least to be differentiated, got "
                f"{jnp.result_type(leaf)}{_at(path)}: hand quantized weights over in `context`."
            )


def _no_numbers(leaf: Any) -> str:
    """What a leaf is that is no array of numbers; nothing of one that is."""
    if not isinstance(leaf, _NUMBERS):
        return "" if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else type(leaf).__name__
    dtype = np.asarray(leaf).dtype
    # NumPy files bfloat16 and float8 under void.
    return f"an array of {dtype}" if dtype.kind in "OSUVmM" and not jnp.issubdtype(dtype, jnp.floating) else ""


def _check_type(what: str, path: Any, aval: Any) -> None:
    """Products with random and unit vectors have no sharding in their type, so they would not fit such arrays."""
    mesh = getattr(getattr(aval, "sharding", None), "mesh", None)
    if AxisType.Explicit in getattr(mesh, "axis_types", ()):
        raise ValueError(
            f"{what} lies on a mesh with explicit axes{_at(path)}, and only automatic ones are supported: make it by "
            "`jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))`."
        )
    # In one version of JAX or another.
    varying = getattr(aval, "vma", None) or getattr(getattr(aval, "manual_axis_type", None), "varying", ())
    if varying:
        raise ValueError(
            f"{what} varies over the mesh axis `{', '.join(sorted(varying))}` of `jax.shard_map`{_at(path)}: pass "
            "`check_vma=False` to it, or shard the arrays over a mesh with automatic axes instead."
        )


def _at(path: Any) -> str:
    return f" at `{jax.tree_util.keystr(path)}`" if path else ""
