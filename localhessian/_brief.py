"""What a thing is, in one to five lines: never the numbers of a network."""

import dataclasses
import inspect
import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._status import Status

T = TypeVar("T")
WIDTH, LINES = 100, 5
LONGEST = 80
"""Characters of one field."""


def brief(thing: Any) -> str:
    """A data class or a named tuple by its fields: scalars by their value, arrays by type and shape."""
    fields = (f"{name}={_status(value) if name == 'status' else _field(value)}" for name, value in _fields(thing))
    return wrapped(f"{type(thing).__name__}({', '.join(fields)})")


def wrapped(text: str) -> str:
    """A sentence in as many lines as it takes, up to five."""
    lines = textwrap.wrap(
        text, WIDTH, subsequent_indent="    ", max_lines=LINES, placeholder=" ...", break_on_hyphens=False
    )
    return "\n".join(lines)


def named(names: tuple[str, ...], most: int = 6) -> str:
    """Names in a row; of many the first ones and the last."""
    shown = names if len(names) <= most else (*names[: most - 1], "...", names[-1])
    return ", ".join(shown)


def by_value(cls: type[T]) -> type[T]:
    """Make a named tuple or data class print in brief, compare by value (NaN equals NaN), and have a hash."""
    told: Any = cls
    told.__repr__, told.__eq__, told.__ne__, told.__hash__ = brief, _is_equal, object.__ne__, _hash
    return cls


def _is_equal(one: Any, other: Any) -> bool:
    """Of one type, one structure, and with equal leaves; of what is traced, the same."""
    if type(one) is not type(other):
        return False
    trees: Any = [jax.tree.flatten([value for _, value in _fields(thing)]) for thing in (one, other)]
    (leaves, structure), (others, of_other) = trees
    return structure == of_other and all(map(_is_same, leaves, others))


def _is_same(one: Any, other: Any) -> bool:
    arrays = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in (one, other)]
    if one is other or not any(arrays):
        return bool(one is other or one == other or (_is_nan(one) and _is_nan(other)))
    if not all(arrays) or (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
        return False
    if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, other = jax.random.key_data(one), jax.random.key_data(other)
    if isinstance(one, jax.ShapeDtypeStruct):
        return True
    may_be_nan = bool(jnp.issubdtype(one.dtype, jnp.inexact))
    return bool(np.array_equal(np.asarray(one), np.asarray(other), equal_nan=may_be_nan))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _hash(thing: Any) -> int:
    """Arrays have none."""
    return hash((type(thing), *(name for name, _ in _fields(thing))))


def _fields(thing: Any) -> Iterator[tuple[str, Any]]:
    names = getattr(thing, "_fields", None) or [f.name for f in dataclasses.fields(thing) if f.repr]
    return ((name, getattr(thing, name)) for name in names)


def _status(value: Any) -> str:
    """A code by its name."""
    text = _field(value)
    return Status(int(text)).name if text.isdigit() and int(text) in set(Status) else text


def _field(value: Any) -> str:
    """A field in at most `LONGEST` characters."""
    text = _text(value)
    return text if text and "\n" not in text and len(text) <= LONGEST else type(value).__name__


def _text(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, Mapping):
        return f"{{{named(tuple(map(str, value)), 4)}}}"
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        inside = ", ".join(map(_field, value))
        return f"({inside})" if len(inside) < LONGEST - 1 else f"{len(value)} of them"
    if callable(value) and hasattr(inspect.unwrap(value), "__name__"):
        return str(inspect.unwrap(value).__name__)
    is_plain = value is None or isinstance(value, bool | int | float | str | np.dtype)
    # Of others' things a repr may be all the numbers of a network.
    return repr(value) if is_plain or type(value).__module__.startswith("localhessian.") else ""


def _array(value: Any) -> str:
    is_number = value.shape == () and value.dtype.kind in "biuf" and hasattr(value, "item")
    if is_number and not isinstance(value, jax.core.Tracer):
        return f"{value.item():.4g}" if value.dtype.kind == "f" else str(value.item())
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"
