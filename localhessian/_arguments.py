"""Arguments of the wrong kind: one sentence with the parameter, what was got and what to pass."""

from typing import Any

import jax
import numpy as np

LONGEST = 60
"""Characters of a value that are shown."""


def expect(name: str, value: Any, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Refuse a value that is none of these kinds.

    Raises:
        TypeError: with the name of the parameter, the value in short, and what is wanted.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"`{name}` must be {wanted}, got {short(value)}.")


def expect_key(value: Any) -> None:
    """Refuse what is no random key; None stands for the default.

    Raises:
        TypeError: it is something else.
    """
    if value is not None:
        expect("key", value, (jax.Array, np.ndarray), "a random key, as `jax.random.key(0)`")


def short(value: Any) -> str:
    """What a value is, in a few words: its kind and shape, never its numbers."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)[:LONGEST]
    if isinstance(value, type):
        return f"the class `{value.__name__}` itself"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of {value.dtype} and shape {tuple(value.shape)}"
    return f"a `{type(value).__name__}`"
