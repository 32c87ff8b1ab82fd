"""What a probe has measured, step by step: in memory, as a dataset, and line by line in a file.

A file of JSON lines: first what is measured, then a line for each step. A line is written as soon as it is there, and
none is ever changed, so that a process that is killed loses at most the line at hand; one that begins again from an
earlier step writes on: a line replaces those before it that are of its step or a later one.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from localhessian._arguments import expect_path
from localhessian._brief import by_value
from localhessian._optional import optional
from localhessian._status import Status
from localhessian.analysis._figures import Figures
from localhessian.analysis._measurement import Entry, Measurement, variables
from localhessian.curvature import Part
from localhessian.network import SIDES

FORMAT = "localhessian.probe/1"
_COUNTS = {"status": -1, "valued": 0, "complete": 0}
"""Figures that are whole numbers, and what stands where there is none; elsewhere NaN."""


@dataclasses.dataclass(frozen=True)
class Head:
    """What is measured, the same at every step."""

    figures: tuple[str, ...]
    """Their names."""
    entries: tuple[Entry, ...]
    """The local Hessians, in the order of the chain."""

    def unlike(self, other: "Head") -> str:
        """In what another one differs; nothing where it goes on with this."""
        if self.figures != other.figures:
            return f"figures {', '.join(other.figures)}"
        mine, theirs = ([dataclasses.replace(entry, method="") for entry in head.entries] for head in (self, other))
        wrong = next((b for a, b in zip(mine, theirs, strict=False) if a != b), None)
        if wrong is not None:
            return f"{wrong.wrt} of block `{wrong.block}` of order {wrong.size} and {wrong.samples} samples"
        return "" if len(mine) == len(theirs) else f"{len(theirs)} local Hessians"


@by_value
@dataclasses.dataclass(frozen=True)
class Record:
    """What was measured at one step."""

    step: int
    objective: float
    """The loss of the batch, J."""
    seconds: float
    """That it took."""
    share: float
    """Of the loop's time outside of the probe that all measurements took until then."""
    note: str = ""
    """What is to be said of it."""
    values: Mapping[int, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """The figures of those entries that were measured, by their places."""


class History:
    """The records of a probe in the order of their steps, written as they come if there is a path."""

    def __init__(self, path: Any = None) -> None:
        """Read what is there, and see that it can be written to.

        Raises:
            ValueError: There is something else.
            OSError: It cannot be read or written.
        """
        self.path: Path | None = None
        self.head: Head | None = None
        self._whole = 0
        self.records: list[Record] = []
        if path is None:
            return
        expect_path(path)
        self.path = Path(path)
        if self.path.exists() and self.path.stat().st_size:
            self.head, self.records, self._whole = _read(self.path)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()

    def begin(self, head: Head) -> None:
        """Say what is measured, or see that it is what the file holds.

        Raises:
            ValueError: It is something else.
            OSError: It cannot be written.
        """
        if self.head is None:
            self._write(dataclasses.asdict(head) | {"format": FORMAT})
        elif wrong := head.unlike(self.head):
            raise ValueError(f"`path`: `{self.path}` is the history of another probe ({wrong}): pass another one.")
        elif self.path is not None:
            os.truncate(self.path, self._whole)  # a line that a killed process did not finish
        self.head = head

    def add(self, record: Record) -> None:
        """Keep a record, in place of all that are of its step or later ones; raises OSError as `begin`."""
        _place(self.records, record)
        self._write(_plain(dataclasses.asdict(record)))

    def before(self, step: int) -> int | None:
        """The last step before this one that has a record."""
        return next((record.step for record in reversed(self.records) if record.step < step), None)

    def to_xarray(self) -> Any:
        """The Dataset, as `lh.Probe.history`."""
        return dataset(self.head, self.records)

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
                self._whole = file.tell()
        except OSError:  # as of a full disk: half a line would make the next one unreadable
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._whole)
            raise


def _place(records: list[Record], record: Record) -> None:
    while records and records[-1].step >= record.step:
        records.pop()
    records.append(record)


def read(path: Any) -> Any:
    """The Dataset of a file that a probe has written, as `lh.Probe.history`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no such file.
    """
    expect_path(path)
    head, records, _ = _read(Path(path))
    return dataset(head, records)


def dataset(head: Head | None, records: Iterable[Record]) -> Any:
    """A Dataset over step, block and wrt; NaN (status -1) where nothing was measured."""
    records = list(records)
    steps = np.array([record.step for record in records], np.int64)
    along = {
        name: ("step", np.array([getattr(record, name) for record in records], kind))
        for name, kind in (("objective", float), ("seconds", float), ("share", float), ("note", object))
    }
    coordinates: dict[str, Any] = {"step": steps}
    if head is not None:
        every, labels = variables(Measurement(_laid_out(head, records), head.entries), ["step"])
        along |= {name: every[name] for name in head.figures}
        coordinates |= labels
    return optional("xarray").Dataset(along, coordinates)


def _laid_out(head: Head, records: list[Record]) -> Figures:
    """Arrays of (steps, entries)."""
    found = {}
    for name in (field.name for field in dataclasses.fields(Figures)):
        kind = bool if name == "complete" else np.int32 if name in _COUNTS else np.float64
        array = np.full((len(records), len(head.entries)), _COUNTS.get(name, np.nan), kind)
        for i, record in enumerate(records):
            for place, values in record.values.items():
                array[i, place] = values.get(name, array[i, place])
        found[name] = array
    return Figures(**found)


def _plain(value: Any) -> Any:
    """What JSON has: no NaN (left out of dictionaries, else null), and infinity as a word."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if not (isinstance(v, float) and math.isnan(v))}
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _read(path: Path) -> tuple[Head, list[Record], int]:
    """What a file says, and how many of its bytes are whole lines."""
    try:
        text = path.read_bytes()
    except IsADirectoryError as error:
        raise ValueError(f"`path`: `{path}` is a folder: pass the path of a file.") from error
    whole = text[: text.rfind(b"\n") + 1]
    try:
        lines = _lines(whole.decode("utf-8").splitlines())
        head = _head(next(lines))
        records: list[Record] = []
        for line in lines:
            _place(records, _record(line, head))
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration, RecursionError) as error:
        raise ValueError(f"`path`: `{path}` is no history of a probe ({type(error).__name__}).") from error
    return head, records, len(whole)


def _lines(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        yield json.loads(line)


def _head(told: dict[str, Any]) -> Head:
    """Raises ValueError or KeyError where it is none."""
    known = {field.name for field in dataclasses.fields(Figures)}
    names, entries = tuple(told["figures"]), tuple(Entry(**entry) for entry in told["entries"])
    texts = all(isinstance(text, str) for entry in entries for text in (entry.block, entry.method))
    sound = all(e.wrt in SIDES and e.part in get_args(Part) and int(e.size) >= 0 for e in entries)
    if told["format"] != FORMAT or not set(names) <= known or not entries or not (texts and sound):
        raise ValueError(told["format"])
    return Head(names, entries)


def _record(told: dict[str, Any], head: Head) -> Record:
    """Raises ValueError, KeyError or TypeError where it is none."""
    values = {
        int(place): {name: float(value) for name, value in of_entry.items()}
        for place, of_entry in told["values"].items()
    }
    if not all(0 <= place < len(head.entries) for place in values):
        raise ValueError(str(list(values)))
    numbers = {name: float(told.get(name, "nan")) for name in ("objective", "seconds", "share")}
    return Record(int(told["step"]), **numbers, note=str(told["note"]), values=values)


def values_of(figures: Figures, names: Iterable[str]) -> dict[str, float]:
    """Plain numbers."""
    return {name: float(jax.device_get(getattr(figures, name))) for name in names}


NOT_FINITE = {"status": float(int(Status.NON_FINITE))}
"""Of what could not be measured."""
