"""Names of blocks as they are found in models, made to fit."""

from collections.abc import Iterable, Sequence
from typing import Any

from localhessian._arguments import short

MARK = "…"
"""Of what is left out."""


def fitted(name: str, width: int) -> str:
    """The name; where it is longer its last words, after a dot or slash; both its ends where one word is longer."""
    if len(name) <= width:
        return name
    begins = (i + 1 for i, letter in enumerate(name) if letter in "./")
    tail = next((name[i:] for i in begins if 0 < len(name) - i < width), "")
    return f"{MARK}{tail}" if tail else _ends(name, width)


def _ends(name: str, width: int) -> str:
    head = (width - 1) // 2
    return name if len(name) <= width else f"{name[:head]}{MARK}{name[len(name) - (width - 1 - head) :]}"


def apart(names: Sequence[str], width: int) -> list[str]:
    """The names made to fit, as they are where one would become another."""
    for fit in (fitted, _ends):
        if len({fit(name, width) for name in names}) == len(set(names)):
            return [fit(name, width) for name in names]
    return list(names)


def shortened(text: str, width: int) -> str:
    """The text, its end left out where it is longer."""
    return text if len(text) <= width else f"{text[: width - 1].rstrip(' ,;:(')}{MARK}"


def distinct(names: Sequence[str], width: int) -> list[str]:
    """The names without the words, up to a dot or slash, that all begin with, made to fit."""
    words = [name.replace("/", ".").split(".") for name in names]
    common = 0
    while len(words) > 1 and all(len(of) > common + 1 and of[common] == words[0][common] for of in words):
        common += 1
    offset = sum(len(word) + 1 for word in words[0][:common]) if words else 0
    return apart([name[offset:] for name in names], width)


def several(name: str, given: Any) -> tuple[str, ...]:
    """One name or several, walked once, each once.

    Raises:
        TypeError: It is none; the message has the name of the argument.
    """
    words = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(word, str) for word in words):
        raise TypeError(f"`{name}` must be a name or several, got {short(given)}.")
    return tuple(dict.fromkeys(words))
