"""Arguments of the wrong kind: one sentence with the parameter, what was got and what to pass."""

import inspect
import math
import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._mesh import is_elsewhere
from localhessian._tree import is_concrete

LONGEST = 60
"""Characters of a value that are shown."""


def expect(name: str, value: Any, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Refuse a value that is none of these kinds.

    Raises:
        TypeError: with the name of the parameter, the value in short, and what is wanted.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"`{name}` must be {wanted}, got {short(value)}.")


def expect_here(name: str, *arrays: Any) -> None:
    """Refuse arrays of which only other processes have some numbers.

    Raises:
        ValueError: with what would look at them, and how they come to every process.
    """
    if is_elsewhere(*arrays):
        raise ValueError(
            f"`{name}` looks at numbers on the host, and only other processes have some of them: "
            "`jax.experimental.multihost_utils.process_allgather(arrays, tiled=True)` brings them to every process."
        )


def expect_key(value: Any, name: str = "key") -> None:
    """Refuse what is no random key, typed or legacy, of one generator; None stands for the default.

    Raises:
        TypeError: it is something else.
    """
    if value is not None and not _is_key(value):
        raise TypeError(f"`{name}` must be a random key, as `jax.random.key(0)`, got {short(value)}.")


def expect_function(name: str, value: Any, wanted: str = "a function", takes: int | None = None) -> None:
    """Refuse what cannot be called, a class, and a function that does not take so many arguments by position.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, type) or not callable(value):
        raise TypeError(f"`{name}` must be {wanted}, got {short(value)}.")
    if takes is not None and not _takes(value, takes):
        raise TypeError(f"`{name}` must be {wanted}, got one that does not take {takes} by position.")


def expect_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False.

    Raises:
        TypeError: it is neither.
    """
    expect(name, value, (bool, np.bool_), "True or False")


def expect_choice(name: str, value: Any, choices: Sequence[str], listed: str = "") -> None:
    """Refuse a word that is none of the choices; `listed`: how the sentence names them.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str) or value not in choices:
        listed = listed or f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
        raise ValueError(f"`{name}` must be {listed}, got {_literal(value)}.")


def expect_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        ValueError: it is none, or a traced number.
    """
    if not is_concrete(value):
        raise ValueError(
            f"`{name}` must be a whole number of at least {least} that is known when the program is made, got a traced "
            f"one: `optax.inject_hyperparams` leaves it alone if `static_args` names it."
        )
    if number(value, "iu") is None or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {_literal(value)}.")


def expect_number(name: str, value: Any, least: float = 0.0, below: float = math.inf) -> None:
    """Refuse what is no finite number between `least` and `below`; of a traced number nothing can be said.

    Raises:
        ValueError: it is none.
    """
    if not is_concrete(value):
        return
    found = number(value)
    if found is None or not math.isfinite(found) or not least <= found < below:
        upper = "" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"`{name}` must be a finite number, at least {least:g}{upper}, got {_literal(value)}.")


def expect_share(name: str, value: Any, *, closed: bool = False) -> None:
    """Refuse a relative cutoff, tolerance or share that is none; `closed`: 0 and 1 are.

    Raises:
        ValueError: it is no number between 0 and 1.
    """
    found = number(value)
    if found is None or not (0 < found < 1 or (closed and found in {0.0, 1.0})):
        raise ValueError(f"`{name}` must lie between 0 and 1, got {_literal(value)}.")


def expect_limit(name: str, value: Any, *, whole: bool = False) -> None:
    """Refuse a limit on sizes, bytes or operations that is none; infinity is one.

    Raises:
        ValueError: it is no positive number, or (`whole`) a fraction.
    """
    found = number(value)
    if found is None or not found > 0 or (whole and math.isfinite(found) and found != int(found)):
        wanted = " without a fraction" if whole else ""
        raise ValueError(f"`{name}` must be a positive number{wanted}, got {_literal(value)}.")


def expect_path(value: Any, name: str = "path") -> None:
    """Refuse what is no path of a file.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str) or not os.fspath(value):
        raise TypeError(f"`{name}` must be the path of a file, a string or a `pathlib.Path`, got {short(value)}.")


def number(value: Any, kinds: str = "fiu") -> float | None:
    """A real number of Python, or of an array without axes, by the kinds of NumPy; None where it is none."""
    if isinstance(value, type) or not is_concrete(value):
        return None
    if hasattr(value, "dtype"):
        # NumPy files bfloat16 and float8 under void.
        kind = "f" if jnp.issubdtype(value.dtype, jnp.floating) else getattr(value.dtype, "kind", "")
        kind = kind if getattr(value, "shape", None) == () else ""
    elif isinstance(value, bool):
        kind = "b"
    else:
        kind = "i" if isinstance(value, numbers.Integral) else "f" if isinstance(value, numbers.Real) else ""
    try:
        return float(value) if kind and kind in kinds else None
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def short(value: Any) -> str:
    """What a value is, in a few words: its kind and shape, never its numbers."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)[:LONGEST]
    if isinstance(value, type):
        return f"the class `{value.__name__}` itself"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of {value.dtype} and shape {tuple(value.shape)}"
    return f"a `{type(value).__name__}`"


def _literal(value: Any) -> str:
    """A setting as it was written, where that is short."""
    text = repr(value) if isinstance(value, list | tuple | np.generic) else short(value)
    return text if len(text) <= LONGEST else short(value)


def _takes(function: Callable, count: int) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some functions in C nothing is known
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _is_key(value: Any) -> bool:
    if not isinstance(value, jax.Array | np.ndarray):
        return False
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.shape == ()
    return value.dtype == np.uint32 and value.shape == jax.eval_shape(_words).shape


def _words() -> jax.Array:
    """Of a legacy random key, which is no more than them."""
    return jax.random.key_data(jax.random.key(0))
