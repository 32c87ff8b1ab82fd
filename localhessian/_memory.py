"""What is remembered about functions: for as long as they live, and told apart as what they are."""

import dataclasses
import functools
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax

T = TypeVar("T")

MAX_ENTRIES = 64
"""Answers remembered of one function; then the oldest is forgotten."""


def remembered(compute: Callable[..., T]) -> Callable[..., T]:
    """A function (owner, *arguments) -> answer that asks once, and forgets with the owner.

    Under other settings of JAX it asks anew, and after an error too. The answer must not refer to the owner, or it
    would keep it alive.
    """
    known: weakref.WeakKeyDictionary[Any, dict[Hashable, T]] = weakref.WeakKeyDictionary()

    @functools.wraps(compute)
    def look(owner: Any, *arguments: Hashable) -> T:
        try:
            answers = known.setdefault(owner, {})
        except TypeError:  # no weak reference to it
            return compute(owner, *arguments)
        key = (_settings(), arguments)
        if key in answers:
            return answers[key]
        answer = compute(owner, *arguments)
        if len(answers) >= MAX_ENTRIES:
            answers.pop(next(iter(answers)), None)
        answers[key] = answer
        return answer

    return look


def _settings() -> tuple[Hashable, ...]:
    """Those of JAX that change what a function is traced to, as they are in force here."""
    config: Any = jax.config
    return (
        config.jax_enable_x64,
        config.jax_default_matmul_precision,
        config.jax_numpy_dtype_promotion,
        config.jax_numpy_rank_promotion,
        config.jax_default_prng_impl,
    )


def as_key(function: Any, what: str) -> Any:
    """A function fit to be a key of compiled programs: itself, or wrapped so that it equals itself alone.

    Programs are found again by `==`. What defines `==` by itself may call two functions equal that are not (a field
    left out of the comparison), or not answer with yes or no (arrays).

    Args:
        function: Anything callable.
        what: It is, for the message.

    Raises:
        TypeError: It can be changed, and says so by having no hash (a dataclass that is not frozen).
    """
    kind: Any = type(function)
    own = kind.__eq__ is not object.__eq__ and not isinstance(function, _BOUND)
    if own and kind.__hash__ is None:
        raise TypeError(
            f"{what} is a {kind.__name__}, which has no hash because it can be changed, so compiled programs "
            "cannot be found again by it: make its class `@dataclasses.dataclass(frozen=True)`, or pass a function."
        )
    return _ByIdentity(function) if own and not _compares_all(function) else function


_BOUND = (types.MethodType, types.BuiltinFunctionType)


def _compares_all(function: Any) -> bool:
    """Whether it is a frozen dataclass that compares every field, and can."""
    settings = vars(type(function)).get("__dataclass_params__")
    if settings is None or not (settings.frozen and settings.eq):
        return False
    try:
        hash(function)
    except TypeError:  # a field is an array
        return False
    return all(field.compare for field in dataclasses.fields(function))


class _ByIdentity:
    """A callable that equals what holds the very same object."""

    def __init__(self, function: Callable) -> None:
        """Hold it."""
        self.__wrapped__ = function

    def __call__(self, *args: Any) -> Any:
        """What it returns."""
        return self.__wrapped__(*args)

    def __eq__(self, other: object) -> bool:
        """The same object."""
        return isinstance(other, _ByIdentity) and self.__wrapped__ is other.__wrapped__

    def __hash__(self) -> int:
        """Of the object, not of its value."""
        return id(self.__wrapped__)

    def __repr__(self) -> str:
        """As if it were not held."""
        return repr(self.__wrapped__)
