"""The answer of `analyze`: a row for each local Hessian, its spectrum, and where the numbers come from."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from localhessian._arguments import expect, expect_flag, expect_path
from localhessian._optional import optional
from localhessian.analysis._findings import Findings, findings
from localhessian.analysis._html import html
from localhessian.analysis._notebook import notebook_html
from localhessian.analysis._report_file import read, write
from localhessian.analysis._spread import Spread, restored
from localhessian.analysis._table import NAME, number, table
from localhessian.analysis.plot import figure
from localhessian.analysis.rows import COLUMNS, Key, Row, RowSpectrum, fitted


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Spectra and condition numbers of the local Hessians of a network; from `lh.analyze`.

    `report[block, wrt]` is a row, `report[block]` a report of one block, iteration gives the rows. Printing gives the
    table; Jupyter shows it with small spectra and the figure.
    """

    rows: tuple[Row, ...]
    spectra: Mapping[Key, RowSpectrum]
    meta: Mapping[str, Any]
    """What was analyzed and with what: JSON types only, not to be changed; see `with_meta`."""

    def __post_init__(self) -> None:
        """Close what is not to be changed.

        Raises:
            TypeError: A part is of another kind.
        """
        expect("rows", self.rows, tuple, "a tuple of rows")
        for row in self.rows:
            expect("rows", row, Row, "a tuple of rows, and each")
        expect("spectra", self.spectra, Mapping, "a dictionary of spectra")
        expect("meta", self.meta, Mapping, "a dictionary")
        object.__setattr__(self, "spectra", MappingProxyType(dict(self.spectra)))
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))

    def __reduce__(self) -> tuple[Any, ...]:
        """To be pickled and copied."""
        return type(self), (self.rows, dict(self.spectra), dict(self.meta))

    def __eq__(self, other: object) -> bool:
        """Whether rows and spectra are the same numbers (NaN equals NaN); where and how long it took is no matter."""
        if not isinstance(other, Report):
            return NotImplemented
        return self.rows == other.rows and self.spectra == other.spectra

    def __hash__(self) -> int:
        """Of the rows' names."""
        return hash(tuple(row.key for row in self.rows))

    def with_meta(self, **more: Any) -> "Report":
        """The same with more entries in `meta`."""
        return Report(self.rows, dict(self.spectra), {**self.meta, **more})

    def __getitem__(self, where: Any) -> Any:
        """The row of (block, wrt), or of (block, wrt, part); of a block's name alone, a report of its rows."""
        name = where if isinstance(where, tuple) else (where,)
        rows = tuple(row for row in self.rows if row.key[: len(name)] == name)
        if not rows:
            known = ", ".join(sorted({f"({row.block!r}, {row.wrt!r})" for row in self.rows}))
            raise KeyError(f"the report has no row {where!r}: it has {known or 'none'}.")
        if len(name) > 1:
            return rows[0]
        return Report(rows, {row.key: self.spectra[row.key] for row in rows if row.key in self.spectra}, self.meta)

    def __iter__(self) -> Iterator[Row]:
        """The rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """How many rows."""
        return len(self.rows)

    @property
    def summary(self) -> Findings:
        """What the numbers show, in four to eight sentences, the verdict first; each knows the rows it speaks of."""
        return findings({"": self})

    @property
    def spread(self) -> Spread:
        """Mean and 95 % interval of every figure over batches, of `lh.analyze(..., batches=...)`.

        Raises:
            AttributeError: It was made without.
            ValueError: The file that it came from is damaged there.
        """
        if "spread" not in self.meta:
            raise AttributeError("the report is of all data alone: `lh.analyze(..., batches=8)` tells the spread too.")
        try:
            return restored(self.meta["spread"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError("the report holds a damaged spread: analyze again with `batches=`.") from error

    def table(self, *, wide: bool = False) -> str:
        """The rows as text: the columns that matter within 100 characters, or all of them (`wide`)."""
        expect_flag("wide", wide)
        return table({"": self}, wide=wide)

    def plot(self, path: str | Path | None = None, *, columns: int | None = None) -> Any:
        """Condition numbers along depth and spectra, as a matplotlib Figure; written to `path` if given.

        `columns`: 1 or 2, as wide as columns of a paper. `lh.plot.depth` and the others there draw single panels. Needs
        matplotlib: `pip install 'localhessian[report]'`.
        """
        if path is not None:
            expect_path(path)
        return figure({"": self}, path, columns=columns)

    def html(self, path: str | Path) -> Path:
        """Write a page that opens without a network: findings, figures, tables whose rows open.

        Needs jinja2: `localhessian[report]`.
        """
        expect_path(path)
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
        expect_path(path)
        return write(path, self.rows, self.spectra, self.meta)

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Read what `save` wrote; the name may come without its `.npz`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not a report, is damaged, or claims to be larger than any report (1 GiB).
        """
        expect_path(path)
        return cls(*read(path))

    def __str__(self) -> str:
        """The table."""
        return self.table()

    def __repr__(self) -> str:
        """What was analyzed, how it ended, and between what the condition numbers lie."""
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        blocks = dict.fromkeys(row.block for row in self.rows)
        ended = Counter(row.status for row in self.rows if row.has_figures or row.status != "CONVERGED")
        lines = [
            f"Report of {len(self.rows)} local Hessians of {len(blocks)} blocks"
            + (", interrupted before the end" if self.meta.get("interrupted") else "")
            + "".join(f"; {count} {status}" for status, count in ended.most_common())
        ]
        for symbol in dict.fromkeys(row.symbol for row in self.rows):
            known = [row for row in self.rows if row.symbol == symbol and math.isfinite(row.kappa_plus)]
            if known:
                least, most = (found(known, key=lambda row: row.kappa_plus) for found in (min, max))
                ends = (f"{number(row.kappa_plus)} ({fitted(row.block, NAME)})" for row in (least, most))
                lines.append(f"  kappa_plus({symbol}) from {' to '.join(ends)}")
        return lines

    def _repr_html_(self) -> str:
        return notebook_html(self, self._lines()[0])
