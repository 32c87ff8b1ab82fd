"""Reports as files: one archive of plain arrays and JSON, read as what it may be, a stranger's."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from localhessian._archive import Archive, opened
from localhessian._files import whole
from localhessian.analysis.rows import Key, Row, RowSpectrum

_FORMAT = {"format": "localhessian report", "version": 1}
MAX_BYTES = 2**30
"""Unpacked; a report of hundreds of blocks takes a tenth of it."""
_FIELDS = tuple(field.name for field in dataclasses.fields(RowSpectrum))


def write(path: str | Path, rows: tuple[Row, ...], spectra: Mapping[Key, RowSpectrum], meta: Mapping[str, Any]) -> Path:
    """Write a report; the path, with `.npz` added if it had no such ending."""
    path = _named(path)
    arrays = {f"{i}/{name}": getattr(spectrum, name) for i, spectrum in enumerate(spectra.values()) for name in _FIELDS}
    head = _FORMAT | {
        "rows": [dataclasses.asdict(row) for row in rows],
        "spectra": [list(key) for key in spectra],
        "meta": dict(meta),
    }
    with whole(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, head=np.array(json.dumps(head)), **arrays)
    return path


def read(path: str | Path) -> tuple[tuple[Row, ...], dict[Key, RowSpectrum], dict[str, Any]]:
    """Rows, spectra and meta of a file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not a report, is damaged, or is larger than any report.
    """
    what = f"is not a localhessian report of version {_FORMAT['version']}, or it is damaged: write it again by `save`."
    with opened(_found(path), MAX_BYTES, what) as archive:
        return _parts(archive)


def _found(path: str | Path) -> Path:
    """What `save` wrote under this name; a folder only where there is nothing else."""
    path, named = Path(path), _named(path)
    return path if path.is_file() or (path.exists() and not named.exists()) else named


def _named(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else Path(f"{path}.npz")


def _parts(archive: Archive) -> Any:
    head = json.loads(str(archive.array("head", "U")))
    if not isinstance(head, dict) or {key: head.get(key) for key in _FORMAT} != _FORMAT:
        raise ValueError("it has another head")
    rows = tuple(map(_row, _listed(head, "rows")))
    spectra: dict[Key, RowSpectrum] = {}
    for i, key in enumerate(_listed(head, "spectra")):
        if not (isinstance(key, list) and len(key) == 3 and all(isinstance(k, str) for k in key)):
            raise ValueError(f"`spectra` holds {key!r:.40}")
        values, counts, kappas = (archive.array(f"{i}/{name}", kind) for name, kind in zip(_FIELDS, "fif", strict=True))
        if values.ndim not in (1, 2) or counts.shape != values.shape or kappas.shape != values.shape[:-1]:
            raise ValueError(f"the spectrum {i} has shapes {values.shape}, {counts.shape} and {kappas.shape}")
        spectra[tuple(key)] = RowSpectrum(values, counts, kappas)
    if len(spectra) != len(head["spectra"]) or not spectra.keys() <= {row.key for row in rows}:
        raise ValueError("`spectra` and `rows` do not belong to each other")
    meta = head.get("meta")
    if not isinstance(meta, dict):
        raise ValueError("`meta` is no dictionary")
    return rows, spectra, meta


def _listed(head: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(head.get(name), list):
        raise ValueError(f"`{name}` is no list")
    return head[name]


def _row(found: Any) -> Row:
    """A row whose every field is of its type."""
    row = Row(**found)
    for field in dataclasses.fields(Row):
        _expect(field.name, getattr(row, field.name), field.type if field.type in {int, float, bool} else str)
    return row


def _expect(name: str, value: Any, kind: Any) -> None:
    """As JSON makes it: a whole number may stand for another."""
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"`{name}` is {value!r:.40}")
