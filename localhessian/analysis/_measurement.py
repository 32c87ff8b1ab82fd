"""The figures of many local Hessians as a pytree of arrays."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from localhessian._brief import named, wrapped
from localhessian._optional import optional
from localhessian._status import Status
from localhessian._tree import is_concrete, pytree, static
from localhessian.analysis._figures import Figures
from localhessian.analysis.rows import Key
from localhessian.curvature import Part
from localhessian.network import Wrt

ATTRIBUTES = {"status": {"flag_values": [int(s) for s in Status], "flag_meanings": " ".join(s.name for s in Status)}}
"""Of figures, in a Dataset: what the codes of a status mean."""
_FILL = {"status": -1, "valued": 0, "complete": False}
"""What stands in place of a Hessian that does not exist; elsewhere NaN."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """Which local Hessian the figures of one entry are of."""

    block: str
    wrt: Wrt
    part: Part
    size: int
    """Order of the matrix (of an uncoupled H_z: of each sample's)."""
    samples: int
    """Samples that entered: of H_W and a coupled H_z the batch, of an uncoupled H_z those measured one by one."""
    coupled: bool
    """Whether H_z is one matrix of the batch; under transformations also where nothing proves that it is not."""
    method: str

    @property
    def key(self) -> Key:
        """(block, wrt, part)."""
        return self.block, self.wrt, self.part


@pytree
class Measurement:
    """The figures of local Hessians; from `lh.measure`.

    `measurement["layer1", "params"]` holds those of one: an array for each figure, with the leading axes of `jax.vmap`.
    """

    figures: Figures
    """Of all entries; they are the last axis of every array, in the order of `entries`."""
    entries: tuple[Entry, ...] = static()

    def __getitem__(self, where: str | tuple[str, ...]) -> Figures:
        """The figures of (block, wrt), or of (block, wrt, part); of a block's name alone, those of its first entry."""
        where = (where,) if isinstance(where, str) else tuple(where)
        for place, entry in enumerate(self.entries):
            if entry.key[: len(where)] == where:
                return Figures(**{name: array[..., place] for name, array in vars(self.figures).items()})
        known = ", ".join(sorted({f"({entry.block!r}, {entry.wrt!r})" for entry in self.entries}))
        raise KeyError(f"the measurement has no entry {where}: it has {known}.")

    def __repr__(self) -> str:
        """What was measured, and how often; no numbers."""
        blocks = named(tuple(dict.fromkeys(entry.block for entry in self.entries)))
        times = "".join(f" x {n}" for n in np.shape(self.figures.status)[:-1])
        return wrapped(f"Measurement({len(self.entries)} local Hessians{times}; blocks {blocks})")

    def to_xarray(self) -> Any:
        """A Dataset with the dimensions block and wrt (and part, if there are several), after those of `jax.vmap`.

        Needs xarray: `pip install 'localhessian[sweep]'`.

        Raises:
            TypeError: Called under a transformation.
        """
        self._check()
        lead = [f"axis_{i}" for i in range(np.ndim(self.figures.status) - 1)]
        data, coordinates = variables(self, lead)
        return optional("xarray").Dataset(data, coordinates)

    def to_dataframe(self) -> Any:
        """A row for each local Hessian, with the places along the axes of `jax.vmap` in columns `axis_0`, ...

        Needs pandas: `pip install 'localhessian[report]'`.

        Raises:
            TypeError: Called under a transformation.
        """
        self._check()
        status = np.asarray(self.figures.status)
        places = np.stack(np.meshgrid(*map(np.arange, status.shape), indexing="ij")).reshape(status.ndim, -1)
        columns: dict[str, Any] = {f"axis_{i}": place for i, place in enumerate(places[:-1])}
        for field in dataclasses.fields(Entry):
            columns[field.name] = [getattr(self.entries[i], field.name) for i in places[-1]]
        columns |= {name: np.asarray(array).ravel() for name, array in vars(self.figures).items()}
        columns["status"] = [Status(int(code)).name for code in columns["status"]]
        return optional("pandas").DataFrame(columns)

    def _check(self) -> None:
        if not is_concrete(self):
            raise TypeError(
                "a table holds numbers: return the measurement from `jax.jit` or `jax.vmap`, and convert it outside."
            )


def variables(measurement: Measurement, lead: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data variables and coordinates of an xarray Dataset; `lead`: the names of the axes before the last."""
    entries = measurement.entries
    names = {name: list(dict.fromkeys(getattr(entry, name) for entry in entries)) for name in ("block", "wrt", "part")}
    parts = names.pop("part")
    dims = [*names, *(["part"] if len(parts) > 1 else [])]
    sides = {**names, **({"part": parts} if len(parts) > 1 else {})}
    shape = tuple(len(sides[dim]) for dim in dims)
    at = tuple(np.array([[sides[dim].index(getattr(entry, dim)) for entry in entries] for dim in dims]))
    coordinates: dict[str, Any] = {**sides, **({"part": parts[0]} if len(parts) == 1 else {})}
    for name, empty in (("size", 0), ("samples", 0), ("coupled", False), ("method", "")):
        values = np.array([getattr(entry, name) for entry in entries])
        coordinates[name] = (dims, _spread(values, at, shape, empty))
    data = {
        name: ([*lead, *dims], _spread(np.asarray(array), at, shape, _FILL.get(name, np.nan)), ATTRIBUTES.get(name, {}))
        for name, array in vars(measurement.figures).items()
    }
    return data, coordinates


def _spread(values: np.ndarray, at: tuple[np.ndarray, ...], shape: tuple[int, ...], empty: Any) -> np.ndarray:
    """The entries on the last axis laid out along block, side and part."""
    laid_out = np.full((*values.shape[:-1], *shape), empty, values.dtype)
    places: Any = (..., *at)
    laid_out[places] = values
    return laid_out
