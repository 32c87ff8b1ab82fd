"""Sweeps as they are written on a command line or in a file: which case, along which axes."""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from localhessian.analysis import sweep
from localhessian.lab._own import function_of

_SPACES: dict[str, Any] = {"linspace": np.linspace, "logspace": np.logspace, "geomspace": np.geomspace}
_CALL = re.compile(rf"\s*({'|'.join(_SPACES)})\s*\((.*)\)\s*")
_RANGE = re.compile(r"\s*(-?\d+)\s*\.\.\s*(-?\d+)\s*")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A sweep that is to be run."""

    case: str
    """`module:function`."""
    axes: Mapping[str, Sequence[Any]]
    static: tuple[str, ...] = ()
    out: str | None = None
    compiled: bool = True
    seed: int = 0

    @property
    def cases(self) -> int:
        """How many there are."""
        return int(np.prod([len(values) for values in self.axes.values()], dtype=np.int64))

    @property
    def compilations(self) -> int:
        """How many there will be, where each program fits the memory."""
        return int(np.prod([len(self.axes[name]) for name in self.static], dtype=np.int64)) if self.compiled else 0


def asked_of(path: Path) -> Asked:
    """What a TOML file asks for: `case`, a table `axes`, and if wanted `static`, `out`, `compiled`, `seed`.

    Raises:
        ValueError: It is no such file; the message tells where.
    """
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"`{path}` cannot be read as TOML: {error}.") from error
    names = {field.name for field in dataclasses.fields(Asked)}
    unknown = [name for name in told if name not in names]
    if unknown or not isinstance(told.get("case"), str) or not isinstance(told.get("axes"), dict):
        got = f"`{unknown[0]}`" if unknown else "no `case` or no table `axes`"
        raise ValueError(f"`{path}` must hold `case` and `axes`, and may hold {', '.join(sorted(names))}: got {got}.")
    axes = {name: values_of(name, given) if isinstance(given, str) else given for name, given in told["axes"].items()}
    static = told.get("static", ())
    return Asked(**{**told, "axes": axes, "static": (static,) if isinstance(static, str) else tuple(static)})


def axis_of(text: str) -> tuple[str, list[Any]]:
    """Name and values of `scale=logspace(-1,1,9)`, `seed=0..9`, `width=16,32` or `norm=batch,none`.

    Raises:
        ValueError: It is none of these.
    """
    name, found, values = text.partition("=")
    if not found:
        raise ValueError(f"an axis is written `name=values`, as `scale=logspace(-1,1,9)` or `seed=0..9`, got `{text}`.")
    return name.strip(), values_of(name.strip(), values)


def values_of(name: str, text: str) -> list[Any]:
    """The values that are meant.

    Raises:
        ValueError: None are.
    """
    if called := _CALL.fullmatch(text):
        try:
            start, stop, count = called[2].split(",")
            return _SPACES[called[1]](float(start), float(stop), int(count)).tolist()
        except ValueError as error:
            raise ValueError(f"`{name}`: `{called[1]}` takes start, stop and count, got `{text}` ({error}).") from error
    if ends := _RANGE.fullmatch(text):
        return list(range(int(ends[1]), int(ends[2]) + 1))
    values = [_value(word.strip()) for word in text.split(",") if word.strip()]
    if not values:
        raise ValueError(f"`{name}` has no values: write `{name}=0..9`, `{name}=linspace(0,1,5)` or `{name}=1,2,4`.")
    return values


def _value(word: str) -> Any:
    if word in {"true", "false"}:
        return word == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def run_asked(asked: Asked, workers: int = 0) -> Any:
    """The dataset; with a bar, and over so many processes where there are any. Raises as `lh.sweep`."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) if workers else contextlib.nullcontext() as executor:
        return sweep(
            function_of(asked.case),
            asked.axes,
            asked.static,
            out=asked.out,
            executor=executor,
            key=jax.random.key(asked.seed),
            compiled=asked.compiled,
            progress=sys.stderr.isatty(),
        )


def closing(found: Any, asked: Asked) -> str:
    """What became of it, in a sentence."""
    told = f"{int(found.finished.sum())} of {asked.cases} cases in {_duration(found.attrs['seconds'])}"
    failed = f", {found.attrs['failed']} failed (`error` tells why)" if found.attrs["failed"] else ""
    again = "; the same command goes on" if found.attrs["interrupted"] and asked.out else ""
    return f"{told}{failed}{again}." + (f" Written: {asked.out}" if asked.out else "")


def forecast(asked: Asked) -> str:
    """Cases, compilations and the time that they will take, by the first case, which is run."""
    first = {name: list(values)[:1] for name, values in asked.axes.items()}
    found = sweep(function_of(asked.case), first, asked.static, compiled=asked.compiled)
    compiling = found.attrs["compile_seconds"] * asked.compilations
    running = (found.attrs["seconds"] - found.attrs["compile_seconds"]) * asked.cases
    axes = " x ".join(f"{name} ({len(values)})" for name, values in asked.axes.items())
    lines = [f"{asked.cases} cases: {axes}", f"{asked.compilations} compilations: {_duration(compiling)}"]
    lines += [f"running: {_duration(running)}, by the first case alone on {found.attrs['device']}"]
    if found.attrs["failed"]:
        lines += [f"the first case fails: {found.error.values.ravel()[0]}"]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.2g} s"
