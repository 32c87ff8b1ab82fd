"""Which report is meant where there are several."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")


class Label(NamedTuple):
    """Of a report: reports of one network share a color, its last stage is drawn solid, those before are dashed."""

    network: str = ""
    stage: str = ""

    def __str__(self) -> str:
        """The words that there are."""
        return ", ".join(filter(None, self))


Labeled: TypeAlias = Mapping[Any, T]
"""Reports by the name of a network, or by (network, stage); with an empty name none is shown."""
_OLD = " | "
"""Between the words of a label in files of version 0.1."""


def labeled(reports: Labeled[T]) -> dict[Label, T]:
    """The same by labels.

    Raises:
        TypeError: A key is neither a name nor a pair of names.
    """
    return {label_of(key): report for key, report in reports.items()}


def label_of(key: Any) -> Label:
    """The label that a key stands for.

    Raises:
        TypeError: It is neither a name nor a pair of names.
    """
    words = (key,) if isinstance(key, str) else tuple(key) if isinstance(key, tuple | list) else ()
    if not 1 <= len(words) <= len(Label._fields) or not all(isinstance(word, str) for word in words):
        raise TypeError(f"a report is labeled by the name of its network, or by (network, stage), got {key!r:.60}.")
    return Label(*words)


def stored_label(found: Any, otherwise: str) -> Label:
    """What the `meta` of a report that was read holds, or, where that is no label, a name."""
    if isinstance(found, str):
        return Label(*found.split(_OLD, 1))
    try:
        return label_of(found)
    except TypeError:
        return Label(otherwise)
