"""Settings check themselves where they are made: one sentence for what means nothing."""

import math
from typing import Any

import numpy as np

from localhessian._tree import is_concrete


def check_number(name: str, value: Any, least: float = 0.0, below: float = math.inf) -> None:
    """Refuse what is no finite number between `least` and `below`; of a traced number nothing can be said.

    Raises:
        ValueError: It is none.
    """
    if not is_concrete(value):
        return
    if not _is_number(value, "fiu") or not least <= float(value) < below:
        upper = "" if below == math.inf else f" and below {below:g}"
        raise ValueError(f"`{name}` must be a finite number, at least {least:g}{upper}, got {value!r}.")


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        ValueError: It is none.
    """
    if not is_concrete(value):
        raise ValueError(
            f"`{name}` must be a whole number of at least {least} that is known when the program is made, got a traced "
            f"one: `optax.inject_hyperparams` leaves it alone if `static_args` names it."
        )
    if not _is_number(value, "iu") or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")


def check_callable(name: str, value: Any, what: str) -> None:
    """Refuse what cannot be called.

    Raises:
        ValueError: It cannot.
    """
    if not callable(value):
        raise ValueError(f"`{name}` must be {what}, got {value!r}.")


def _is_number(value: Any, kinds: str) -> bool:
    if isinstance(value, (str, bytes)) or value is None:
        return False
    array = np.asarray(value)
    return (
        array.ndim == 0 and (array.dtype.kind in kinds or _is_narrow(array, kinds)) and bool(np.isfinite(float(array)))
    )


def _is_narrow(array: np.ndarray, kinds: str) -> bool:
    """Whether it is a number of a type that NumPy does not know (bfloat16)."""
    return "f" in kinds and array.dtype.kind == "V" and array.dtype.name.startswith("bfloat")
