"""A claim of the paper: what it says, how it is measured, and the rule by which the data decide."""

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp

from localhessian._types import Array
from localhessian.lab._augment import Augmentation
from localhessian.lab._data import Images

Size = Literal["small", "full"]
SIZES: tuple[Size, ...] = ("small", "full")
Point: TypeAlias = Mapping[str, Any]
"""Which case: JSON's words, numbers and lists by name; every value becomes a column of the data."""
Row: TypeAlias = Mapping[str, Any]
"""What was measured: words, numbers and booleans by name."""
Frame: TypeAlias = Any
"""A pandas DataFrame: a line for each row of each case, the columns of its point first."""


class Verdict(enum.Enum):
    """What became of a claim."""

    HOLDS = "HOLDS"
    WITH_LIMITS = "HOLDS WITH LIMITS"
    FAILS = "DOES NOT HOLD"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A verdict with its reason."""

    verdict: Verdict
    reason: str
    """One sentence with the numbers that decide."""

    def __str__(self) -> str:
        """Both, in a line."""
        return f"{self.verdict.value}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a claim is measured with."""

    size: Size
    seeds: tuple[int, ...]
    images: Images

    @functools.cached_property
    def augment(self) -> Augmentation:
        """Normalization of the images, without crops and flips."""
        return Augmentation.standard(self.images, pad=0, flip=False)

    def batch(self, count: int) -> tuple[Array, Array]:
        """The first training images, normalized, and their labels."""
        x, y = (jnp.asarray(part[:count]) for part in (self.images.train_x, self.images.train_y))
        return self.augment.plain(x), y


@dataclasses.dataclass(frozen=True)
class Work:
    """What the measurement of one case is given."""

    setting: Setting
    folder: Path
    """Of this case alone, for files to go on from; it stays. Made by who writes to it."""
    tell: Callable[[float, str], None] = lambda share, what: None
    """tell(share of this case that is done, what is being done)."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of the paper, or an objection of its reviewers, as a program that decides about it.

    It is measured case by case. Each case is finished as a whole, and kept; a long one may keep more in its folder.
    """

    name: str
    """In commands and files."""
    title: str
    says: str
    """What the paper says, and where."""
    rule: str
    """By what the verdict is decided; set down before any data was looked at."""
    cost: Mapping[Size, str]
    """About how long, on what."""
    seeds: Mapping[Size, int]
    """How many seeds by default: 0, 1, ..."""
    data: Mapping[Size, str]
    """Images by default, by the names of `localhessian train`."""
    points: Callable[[Setting], Sequence[Point]]
    """The cases; those of other seeds are others."""
    measure: Callable[[Point, Work], Sequence[Row]]
    """What is found at one of them."""
    table: Callable[[Frame], str]
    figure: Callable[[Frame], Any]
    """A matplotlib Figure."""
    verdict: Callable[[Frame], Judgement]
