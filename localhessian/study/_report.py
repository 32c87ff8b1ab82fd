"""The answer of `analyze`: a row for each local Hessian, its spectrum, and where the numbers come from."""

import dataclasses
import html as html_text
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from localhessian.study._figure import figure
from localhessian.study._html import html
from localhessian.study._optional import optional
from localhessian.study._row import COLUMNS, Key, Row, RowSpectrum
from localhessian.study._table import table

_FORMAT = {"format": "localhessian report", "version": 1}


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Spectra and condition numbers of the local Hessians of a network; from `lh.analyze`.

    `report[block, wrt]` is a row. Printing gives the table; Jupyter shows it.
    """

    rows: tuple[Row, ...]
    spectra: Mapping[Key, RowSpectrum]
    meta: Mapping[str, Any]
    """What was analyzed and with what: JSON types only, not to be changed; see `with_meta`."""

    def __post_init__(self) -> None:
        """Close what is not to be changed."""
        object.__setattr__(self, "spectra", MappingProxyType(dict(self.spectra)))
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))

    def __reduce__(self) -> tuple[Any, ...]:
        """To be pickled and copied."""
        return type(self), (self.rows, dict(self.spectra), dict(self.meta))

    def __eq__(self, other: object) -> bool:
        """Whether rows and spectra are the same numbers (NaN equals NaN); where and how long it took is no matter."""
        if not isinstance(other, Report):
            return NotImplemented
        return (
            repr(self.rows) == repr(other.rows)
            and self.spectra.keys() == other.spectra.keys()
            and all(
                np.array_equal(spectrum.eigenvalues, other.spectra[key].eigenvalues, equal_nan=True)
                for key, spectrum in self.spectra.items()
            )
        )

    def __hash__(self) -> int:
        """Of the rows' names."""
        return hash(tuple(row.key for row in self.rows))

    def with_meta(self, **more: Any) -> "Report":
        """The same with more entries in `meta`."""
        return Report(self.rows, dict(self.spectra), {**self.meta, **more})

    def __getitem__(self, where: tuple[str, ...]) -> Row:
        """The row of (block, wrt), or of (block, wrt, part)."""
        for row in self.rows:
            if row.key[: len(where)] == tuple(where):
                return row
        known = ", ".join(sorted({f"({row.block!r}, {row.wrt!r})" for row in self.rows}))
        raise KeyError(f"the report has no row {where}: it has {known}.")

    def table(self) -> str:
        """The rows as text in columns."""
        return table({"": self})

    def plot(self, path: str | Path | None = None) -> Any:
        """Condition numbers along depth and spectra, as a matplotlib Figure; written to `path` if given.

        Needs matplotlib: `pip install 'localhessian[report]'`.
        """
        return figure({"": self}, path)

    def html(self, path: str | Path) -> Path:
        """Write a page that opens without a network. Needs matplotlib and jinja2: `localhessian[report]`."""
        return html({"": self}, path)

    def to_dataframe(self) -> Any:
        """The fixed columns as a pandas DataFrame. Needs pandas: `pip install 'localhessian[report]'`."""
        records = [dataclasses.asdict(row) for row in self.rows]
        return optional("pandas").DataFrame(records, columns=list(COLUMNS))

    def save(self, path: str | Path) -> Path:
        """Write everything to one `.npz` file (numbers and JSON, no pickle).

        Returns:
            The path, with `.npz` added if it had no such ending.
        """
        path = Path(path)
        path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"{i}/{field.name}": getattr(spectrum, field.name)
            for i, spectrum in enumerate(self.spectra.values())
            for field in dataclasses.fields(RowSpectrum)
        }
        head = _FORMAT | {
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "spectra": [list(key) for key in self.spectra],
            "meta": dict(self.meta),
        }
        part = path.with_name(path.name + ".part")
        with open(part, "wb") as file:
            np.savez_compressed(file, head=np.array(json.dumps(head)), **arrays)
        part.replace(path)  # an interruption leaves the old file whole
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not a report, or is damaged.
        """
        path = Path(path)
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                head = json.loads(str(file["head"]))
                if {key: head.get(key) for key in _FORMAT} != _FORMAT:
                    raise ValueError(f"version {head.get('version')}")
                fields = [field.name for field in dataclasses.fields(RowSpectrum)]
                spectra = {
                    tuple(key): RowSpectrum(*(file[f"{i}/{name}"] for name in fields))
                    for i, key in enumerate(head["spectra"])
                }
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"`{path}` is not a localhessian report of version {_FORMAT['version']}, or it is damaged: write it "
                f"again with `Report.save`. ({type(error).__name__}: {error})"
            ) from error
        return cls(tuple(Row(**row) for row in head["rows"]), spectra, head["meta"])

    def __str__(self) -> str:
        """The table."""
        return self.table()

    def _repr_html_(self) -> str:
        return f"<pre>{html_text.escape(self.table())}</pre>"
