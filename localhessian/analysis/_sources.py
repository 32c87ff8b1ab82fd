"""Where local Hessians are taken: in one batch, or in the batches of a stream."""

import dataclasses
import functools
import itertools
from typing import Any

from localhessian._arguments import expect_count
from localhessian.analysis.rows import Key
from localhessian.curvature import coupling
from localhessian.network import SIDES, BackMatching, Batch, Stream, StreamMatching, back_match_partly, cut_matching

Matching = BackMatching | StreamMatching
"""What `back_match` returns."""


def in_batches(x: Any, y: Any, batch_size: int | None) -> tuple[Any, Any]:
    """x and y, or a stream of parts of them and None.

    Raises:
        ValueError: `batch_size` beside a stream, or no number of samples.
    """
    if batch_size is None:
        return x, y
    if isinstance(x, Stream):
        raise ValueError("`batch_size` cuts `x`, which is a stream: say it there, `lh.Stream(..., batch_size=...)`.")
    return Stream([(x, y)], batch_size), None


@dataclasses.dataclass(frozen=True)
class Sources:
    """Of a network at its point."""

    matching: Matching
    samples: tuple[int, ...]
    """Those looked at one by one where they are not coupled."""
    routes: dict[Any, Any] = dataclasses.field(default_factory=dict)
    """Found already, by what blocks compute."""

    def one_by_one(self, job: Key) -> bool:
        """Whether the samples are looked at one by one."""
        return SIDES[job[1]].per_sample and not bool(self.matching.coupled[job[0]])

    def of(self, job: Key) -> tuple[Matching, tuple[int, ...] | None]:
        """What the local Hessian is of, and which samples of that; None: all."""
        if not self.one_by_one(job):
            return self.matching, None
        if isinstance(self.matching, StreamMatching):
            return self._gathered, tuple(range(len(self.samples)))
        return self.matching, self.samples

    def count(self, job: Key) -> int:
        """Samples that enter."""
        return len(self.samples) if self.one_by_one(job) else self.matching.samples

    def check(self, jobs: list[Key]) -> None:
        """Refuse a stream whose batches couple their samples, unless the batches' own Hessians are meant.

        Raises:
            ValueError: There is one that was not said to be.
        """
        if isinstance(self.matching, StreamMatching) and not self.matching.stream.per_batch:
            for why in filter(None, map(self.refused, jobs)):
                raise ValueError(why)

    @property
    def data(self) -> tuple[Any, ...]:
        """What tells the data of a stream apart."""
        if isinstance(self.matching, BackMatching):
            return ()
        stream = self.matching.stream
        return self.matching.data, self.matching.samples, self.matching.batches, stream.per_batch

    def refused(self, job: Key) -> str:
        """Why batches tell nothing of this one; nothing where they do."""
        return coupling(self.matching, *job) if isinstance(self.matching, StreamMatching) else ""

    @functools.cached_property
    def _gathered(self) -> BackMatching:
        """The samples of a stream, in a batch of their own."""
        matching: Any = self.matching
        found: BackMatching = matching.of_samples(self.samples, back_match_partly)
        return found

    @property
    def whole(self) -> BackMatching | None:
        """The batch, where there is one."""
        return self.matching if isinstance(self.matching, BackMatching) else None

    @property
    def first(self) -> BackMatching:
        """The batch, or the first."""
        return self.matching if isinstance(self.matching, BackMatching) else self.matching.first


def expect_batches(batches: Any) -> int:
    """How many, at least two.

    Raises:
        ValueError: It is no such number.
    """
    expect_count("batches", batches, 2)
    return int(batches)


def single_batches(matching: Matching, batches: int, size: int | None) -> list[Batch]:
    """The first of them, with the context of each as it was given.

    Args:
        matching: Of all data.
        batches: How many.
        size: Samples of each; None takes the stream's, or as many as make so many of x.

    Raises:
        ValueError: There are not so many.
    """
    if isinstance(matching, BackMatching):
        if matching.samples < batches:
            raise ValueError(f"`batches` = {batches} are more than the {matching.samples} samples of `x`.")
        matching = cut_matching(matching, size or matching.samples // batches)
    whole = list(itertools.islice(matching.parts(), batches))
    if len(whole) < batches:
        raise ValueError(f"`batches` = {batches}, and the stream has {len(whole)}: ask for fewer, or cut it finer.")
    return whole
