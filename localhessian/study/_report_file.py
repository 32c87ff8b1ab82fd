"""Reports as files: one archive of plain arrays and JSON, read as what it may be, a stranger's."""

import dataclasses
import json
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from localhessian._files import whole
from localhessian.study._row import Key, Row, RowSpectrum

_FORMAT = {"format": "localhessian report", "version": 1}
MAX_BYTES = 2**30
"""Unpacked; a report of hundreds of blocks takes a tenth of it."""
_FIELDS = tuple(field.name for field in dataclasses.fields(RowSpectrum))
_UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    SyntaxError,
    NotImplementedError,
    RecursionError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    OSError,
    RuntimeError,  # zipfile's, of members that claim to be encrypted
    tokenize.TokenError,
    lzma.LZMAError,
)


def write(path: str | Path, rows: tuple[Row, ...], spectra: Mapping[Key, RowSpectrum], meta: Mapping[str, Any]) -> Path:
    """Write a report; the path, with `.npz` added if it had no such ending."""
    path = Path(path)
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
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
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file `{path}`.")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if sum(sizes.values()) > MAX_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
            return _parts(archive, sizes)
    except _UNREADABLE as error:
        raise ValueError(
            f"`{path}` is not a localhessian report of version {_FORMAT['version']}, or it is damaged: write it again "
            f"with `Report.save`. ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def _parts(archive: zipfile.ZipFile, sizes: dict[str, int]) -> Any:
    head = json.loads(str(_array(archive, sizes, "head", "U")))
    if not isinstance(head, dict) or {key: head.get(key) for key in _FORMAT} != _FORMAT:
        raise ValueError("it has another head")
    rows = tuple(map(_row, _listed(head, "rows")))
    spectra: dict[Key, RowSpectrum] = {}
    for i, key in enumerate(_listed(head, "spectra")):
        if not (isinstance(key, list) and len(key) == 3 and all(isinstance(k, str) for k in key)):
            raise ValueError(f"`spectra` holds {key!r:.40}")
        values, counts, kappas = (
            _array(archive, sizes, f"{i}/{name}", kind) for name, kind in zip(_FIELDS, "fif", strict=True)
        )
        if values.ndim not in (1, 2) or counts.shape != values.shape or kappas.shape != values.shape[:-1]:
            raise ValueError(f"the spectrum {i} has shapes {values.shape}, {counts.shape} and {kappas.shape}")
        spectra[tuple(key)] = RowSpectrum(values, counts, kappas)
    if len(spectra) != len(head["spectra"]) or not spectra.keys() <= {row.key for row in rows}:
        raise ValueError("`spectra` and `rows` do not belong to each other")
    if not isinstance(head.get("meta"), dict):
        raise ValueError("`meta` is no dictionary")
    return rows, spectra, head["meta"]


def _array(archive: zipfile.ZipFile, sizes: dict[str, int], name: str, kinds: str) -> np.ndarray:
    """One array of this kind of numbers; what its header claims must be there before memory is taken for it."""
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, turned, dtype = header[version](file)
        count = 1
        for n in shape:
            count *= n
        if dtype.hasobject or dtype.kind not in kinds or count * dtype.itemsize > sizes[f"{name}.npy"]:
            raise ValueError(f"`{name}` claims {dtype} of shape {shape}")
        numbers = np.frombuffer(file.read(count * dtype.itemsize), dtype)
        file.read()  # to the end, where the checksum is
    return numbers.reshape(shape[::-1]).T if turned else numbers.reshape(shape)


def _listed(head: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(head.get(name), list):
        raise ValueError(f"`{name}` is no list")
    return head[name]


def _row(found: Any) -> Row:
    """A row whose every field is of its type."""
    row = Row(**found)
    for field in dataclasses.fields(Row):
        value, kind = getattr(row, field.name), _KINDS.get(field.type, str)
        if isinstance(value, bool) is not (kind is bool) or not isinstance(value, kind):
            raise ValueError(f"`{field.name}` is {value!r:.40}")
    return row


_KINDS: dict[Any, Any] = {int: int, float: (int, float), bool: bool}
"""What JSON makes of a field; the others hold text."""
