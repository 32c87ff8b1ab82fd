"""What a case returns, as named arrays with named dimensions; and what many cases returned, as one dataset."""

import dataclasses
from collections.abc import Generator, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import short
from localhessian._optional import optional
from localhessian.analysis._measurement import ATTRIBUTES, Measurement, variables
from localhessian.analysis.sweeps._axes import RESERVED, Axes

RESULT = "result"
"""The name of an answer that is one number or array."""
_FILL = {"f": np.nan, "b": False, "i": -1, "u": 0}


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of some cases; each array has the axis of the cases first."""

    data: dict[str, np.ndarray]
    dims: dict[str, tuple[str, ...]]
    """The names of the axes after that of the cases."""
    labels: dict[str, tuple[str, ...]]
    """What stands along a dimension, where that has names."""
    attributes: dict[str, dict[str, Any]]

    def unlike(self, other: "Answers", axes: Axes) -> str:
        """In what these answers are of another kind; nothing where they are of one."""
        for name in {**self.data, **other.data}:
            if name in axes.values or name in RESERVED:
                return f"a case must not return `{name}`, which is the name of something else in the dataset"
            if name not in self.data or name not in other.data:
                return f"`{name}` is not among what every case returns"
            if self.dims[name] != other.dims[name]:
                return f"`{name}` has not the same number of axes in every case"
        return ""


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known of some cases."""

    cases: np.ndarray
    """Their numbers."""
    errors: tuple[str, ...]
    """For each of them why it failed, or nothing."""
    answers: Answers | None
    """Of those that did not fail, in their order."""

    @property
    def good(self) -> np.ndarray:
        """The numbers of the cases that did not fail."""
        return self.cases[[not error for error in self.errors]]


Records: TypeAlias = Generator[Record, None, None]
"""Of cases, as they are finished; closed where nobody waits for more."""


def answers_of(result: Any, lead: int = 0) -> Answers:
    """The named arrays of a result.

    Args:
        result: A pytree of arrays and numbers; measurements in it keep their names.
        lead: 1 where every array has an axis of cases, 0 where it is the answer of one.

    Raises:
        TypeError: It holds something else, or nothing.
    """
    found = Answers({}, {}, {}, {})
    is_leaf = lambda node: isinstance(node, Measurement)
    for path, value in jax.tree_util.tree_leaves_with_path(result, is_leaf=is_leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".").replace("/", "_")  # in files / makes folders
        if isinstance(value, Measurement):
            _add_measurement(found, name, value, lead)
            continue
        array = None if isinstance(value, str | bytes) else np.asarray(_numbers(value))
        if array is None or array.dtype.kind not in "fiub":
            raise TypeError(
                f"a case must return real arrays and numbers (a pytree of them), got {short(value)} as "
                f"`{name or RESULT}`."
            )
        array = array if lead else array[None]
        found.data[name or RESULT] = array
        found.dims[name or RESULT] = tuple(f"{name or RESULT}_{i}" for i in range(array.ndim - 1))
        if path and isinstance(path[-1], jax.tree_util.GetAttrKey):  # a field of a result of ours
            found.attributes[name] = ATTRIBUTES.get(path[-1].name, {})
    if not found.data:
        raise TypeError(f"a case must return arrays and numbers (a pytree of them), got {short(result)}.")
    return found


def _numbers(value: Any) -> Any:
    """Of a random key its words; of narrow floating point, which NumPy does not have, float32."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(value)
    if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating) and jnp.finfo(value.dtype).bits < 32:
        return np.asarray(value, np.float32)
    return value


def _add_measurement(found: Answers, name: str, value: Measurement, lead: int) -> None:
    """Its figures as `name.figure`, along `name.block`, `name.wrt` and `name.part`."""
    prefix = f"{name}." if name else ""
    data, coordinates = variables(value, ["case"] * lead)
    sides = {dim: tuple(coordinates[dim]) for dim in ("block", "wrt", "part") if isinstance(coordinates[dim], list)}
    dims = tuple(f"{prefix}{dim}" for dim in sides)
    found.labels.update(zip(dims, sides.values(), strict=True))
    for part, (_, array, attributes) in data.items():
        found.data[f"{prefix}{part}"] = array if lead else array[None]
        found.dims[f"{prefix}{part}"] = dims
        found.attributes[f"{prefix}{part}"] = attributes
    cases = len(next(iter(found.data.values())))
    for part in ("size", "samples", "coupled"):
        array = coordinates[part][1]
        found.data[f"{prefix}{part}"] = np.broadcast_to(array, (cases, *array.shape))
        found.dims[f"{prefix}{part}"] = dims


def joined(results: list[Answers]) -> Answers:
    """Of several cases of one program, one after the other."""
    first = results[0]
    data = {name: np.concatenate([result.data[name] for result in results]) for name in first.data}
    return dataclasses.replace(first, data=data)


def dataset(axes: Axes, records: Iterable[Record], attributes: Mapping[str, Any]) -> Any:
    """One xarray Dataset with the axes of the sweep in front; what is not there is NaN, -1 or False."""
    records = list(records)
    known = [record.answers for record in records if record.answers is not None]
    errors, finished = np.full(axes.count, "", object), np.zeros(axes.count, bool)
    for record in records:
        errors[record.cases], finished[record.cases] = record.errors, True
    lead = list(axes.values)
    shaped = lambda array: array.reshape(*axes.shape, *array.shape[1:])
    labels = _labels(known)
    called = _shared(labels)
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for answers in known for name in answers.data):
        parts = [(r.good, r.answers) for r in records if r.answers is not None and name in r.answers.data]
        dims, told = parts[0][1].dims[name], parts[0][1].attributes.get(name, {})
        array = shaped(_laid_out(name, parts, labels, axes.count))
        found[name] = ([*lead, *(called.get(dim, dim) for dim in dims)], array, told)
    found["error"], found["finished"] = (lead, shaped(errors)), (lead, shaped(finished))
    of_labels = {called[dim]: values for dim, values in labels.items()}
    coordinates = {name: list(values) for name, values in {**axes.values, **of_labels}.items()}
    return optional("xarray").Dataset(found, coordinates, dict(attributes))


def _labels(known: list[Answers]) -> dict[str, tuple[str, ...]]:
    """Every label along a dimension, in the order of their first appearance."""
    found: dict[str, dict[str, None]] = {}
    for answers in known:
        for dim, labels in answers.labels.items():
            found.setdefault(dim, {}).update(dict.fromkeys(labels))
    return {dim: tuple(labels) for dim, labels in found.items()}


def _shared(labels: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """What each dimension is called: without the name of its measurement where all have the same labels."""
    sides = {dim: dim.rpartition(".") for dim in labels}
    of_measurements: dict[str, dict[str, tuple[str, ...]]] = {}
    for dim, (name, _, side) in sides.items():
        of_measurements.setdefault(name, {})[side] = labels[dim]
    every = list(of_measurements.values())
    return {dim: sides[dim][2] if all(one == every[0] for one in every) else dim for dim in labels}


def _laid_out(name: str, parts: list[tuple[np.ndarray, Answers]], labels: Mapping[str, tuple], count: int) -> Any:
    """(count, *dims): every case in its place, along a dimension with labels by label, else from the beginning."""
    dims = parts[0][1].dims[name]
    sizes = [
        len(labels[dim]) if dim in labels else max(answers.data[name].shape[1 + i] for _, answers in parts)
        for i, dim in enumerate(dims)
    ]
    dtype = np.result_type(*(answers.data[name].dtype for _, answers in parts))
    out = np.full((count, *sizes), _FILL[dtype.kind], dtype)
    for cases, answers in parts:
        array = answers.data[name]
        places: Any = [
            [labels[dim].index(label) for label in answers.labels[dim]] if dim in labels else range(array.shape[1 + i])
            for i, dim in enumerate(dims)
        ]
        out[np.ix_(cases, *places)] = array
    return out
