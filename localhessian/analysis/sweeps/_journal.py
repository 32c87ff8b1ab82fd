"""What a sweep has done, on disk: a file for each record, so that nothing that is finished is ever done again."""

import contextlib
import glob
import json
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from localhessian._archive import opened
from localhessian._arguments import expect_path
from localhessian._files import folder_of_ones_own, whole, write_text
from localhessian._optional import optional
from localhessian.analysis.sweeps._answers import Answers, Record

FORMATS = {".zarr": "zarr", ".nc": "h5netcdf"}
"""By the ending of a path, the package that writes it."""
MAX_BYTES = 2**33
"""A record beyond this is none of ours."""
SHARE, LEAST = 20.0, 10.0
"""The dataset is written anew after that many times as long as its writing takes, and at least these seconds."""


class Journal:
    """The records of one sweep beside its dataset: `s.zarr` has them in `s.zarr.cases`."""

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        """Read what is there.

        Raises:
            ValueError: Another sweep was written there; the message names the difference.
        """
        self._out, self._folder = out, cases_of(out)
        self._check(identity)
        # Of a process that was killed while it wrote: nobody else is here.
        for left in [*self._folder.glob(".*.part"), *out.parent.glob(f".{glob.escape(out.name)}.*")]:
            if left.suffix in {".part", ".old"}:
                _remove(left)
        self.records = [record for path in sorted(self._folder.glob("*.npz")) if (record := _read(path)) is not None]
        self._published, self._took = time.monotonic(), 0.0

    def _check(self, identity: Mapping[str, Any]) -> None:
        place = self._folder / "sweep.json"
        text = json.dumps(identity, indent=1, sort_keys=True)
        if not place.exists() and self._out.exists():
            raise ValueError(
                f"`out`: `{self._out}` is there, and no sweep of ours: choose another `out`, or remove it."
            )
        if not place.exists():
            write_text(place, text)
            return
        try:
            before = json.loads(place.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise ValueError(
                f"`out`: `{place}` is damaged ({error}): remove `{self._folder}`, or choose another `out`."
            ) from error
        wrong = [name for name in {**before, **identity} if before.get(name) != json.loads(text).get(name)]
        if wrong:
            told = "; ".join(
                f"{name}: {_short(before.get(name))} there, {_short(identity.get(name))} here" for name in wrong
            )
            raise ValueError(
                f"`out`: `{self._out}` holds another sweep ({told}). Choose another `out`, or remove it and "
                f"`{self._folder}`."
            )

    def add(self, record: Record) -> None:
        """Keep it, on disk too, whole or not at all."""
        self.records.append(record)
        answers = record.answers
        head: dict[str, Any] = {"errors": record.errors, "dims": {}, "labels": {}, "attributes": {}}
        arrays: dict[str, Any] = {"cases": np.asarray(record.cases, np.int64)}
        if answers is not None:
            head |= {"dims": answers.dims, "labels": answers.labels, "attributes": answers.attributes}
            arrays |= {f"data/{i}": np.ascontiguousarray(array) for i, array in enumerate(answers.data.values())}
        arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
        with whole(self._folder / f"{int(record.cases[0]):09d}.npz") as part, open(part, "wb") as file:
            np.savez(file, **arrays)

    @property
    def is_due(self) -> bool:
        """Whether it is time to write the dataset."""
        return time.monotonic() - self._published > max(SHARE * self._took, LEAST)

    def publish(self, dataset: Any) -> None:
        """Write the dataset where plain xarray opens it, in place of the one before."""
        begun = time.monotonic()
        with _replaced(self._out) as part:
            if self._out.suffix == ".zarr":
                dataset.to_zarr(part, mode="w", zarr_format=2, consolidated=True)
            else:
                dataset.to_netcdf(part, engine=FORMATS[".nc"])
        self._published = time.monotonic()
        self._took = self._published - begun


def path_of(out: Any) -> Path:
    """The path of a dataset, whose ending tells what it is.

    Raises:
        TypeError: It is no path.
        ValueError: It has another ending.
        ImportError: What writes it is not installed.
    """
    expect_path(out, "out")
    path = Path(out)
    if path.suffix not in FORMATS:
        raise ValueError(f"`out` must end in {' or '.join(FORMATS)}, got `{path}`.")
    optional(FORMATS[path.suffix])
    return path


@contextlib.contextmanager
def journal_of(out: Path, identity: Mapping[str, Any]) -> Iterator[Journal]:
    """The journal of a sweep, for as long as this process alone works on it.

    Yields:
        With the records that are there.

    Raises:
        ValueError: Another process works on it, or it belongs to another sweep.
        OSError: It cannot be written.
    """
    with folder_of_ones_own(cases_of(out)):
        yield Journal(out, identity)


def cases_of(out: Path) -> Path:
    """The folder of the records."""
    return out.with_name(f"{out.name}.cases")


def _read(path: Path) -> Record | None:
    """None where it is damaged: its cases are done again."""
    try:
        with opened(path, MAX_BYTES, "is no record of a sweep.") as archive:
            head = json.loads(archive.array("head", "u").tobytes().decode())
            cases = archive.array("cases", "i")
            data = {name: archive.array(f"data/{i}", "fciub") for i, name in enumerate(head["dims"])}
            dims = {name: tuple(dims) for name, dims in head["dims"].items()}
            labels = {name: tuple(labels) for name, labels in head["labels"].items()}
            return Record(
                cases, tuple(head["errors"]), Answers(data, dims, labels, head["attributes"]) if data else None
            )
    except (ValueError, FileNotFoundError):
        path.unlink(missing_ok=True)
        return None


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """As `_files.whole`, for what may be a folder: a moment without either is the worst that can happen."""
    part, old = (path.with_name(f".{path.name}.{secrets.token_hex(4)}.{end}") for end in ("part", "old"))
    try:
        yield part
        if path.is_dir():
            path.rename(old)
        part.replace(path)
    finally:
        for left in (part, old):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."
