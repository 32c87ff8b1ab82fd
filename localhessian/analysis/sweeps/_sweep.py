"""One question asked of many networks."""

import contextlib
import json
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian._arguments import expect_flag, expect_key, expect_limit, short
from localhessian._optional import optional
from localhessian._progress import Progress, follow
from localhessian._types import Key
from localhessian._version import __version__
from localhessian.analysis.sweeps._answers import Record, Records, dataset
from localhessian.analysis.sweeps._axes import Axes, axes_of
from localhessian.analysis.sweeps._case import Case, case_of, code_of, folder_of, program_of
from localhessian.analysis.sweeps._compiled import Programs
from localhessian.analysis.sweeps._hosted import hosted
from localhessian.analysis.sweeps._journal import Journal, journal_of, path_of


def sweep(
    case: Callable[..., Any],
    axes: Mapping[str, Sequence[Any]],
    static_axes: str | Sequence[str] = (),
    *,
    out: str | Path | None = None,
    executor: Any = None,
    key: Key | None = None,
    compiled: bool = True,
    max_bytes: float = 2**30,
    progress: Progress | bool = False,
) -> Any:
    """Run a case at every point between some axes: once compiled for each shape, and nothing that is done is lost.

    Args:
        case: `case(**point)`, or `case(**point, key)` where it takes `key`: a key of its own for each case. It returns
            a pytree of arrays and numbers: an `lh.Measurement`, an `lh.ConditionNumber`, a dictionary, a number.
        axes: The values of each axis by its name. Numbers go into the program as arrays without axes.
        static_axes: A name or names of those that change shapes or the program (depth, width, batch size, words): their
            values come as they are, and each combination is compiled once.
        out: A path ending in `.zarr` or `.nc` for the dataset, which is written as cases finish. Called again with the
            same `out` it goes on where it was stopped, by whatever: finished cases, kept in `<out>.cases`, are not
            repeated, failed ones are.
        executor: With `compiled=False`: of `concurrent.futures`, or any with its `submit`.
        key: Of which each case's is made by `jax.random.fold_in` with its number; default `jax.random.key(0)`.
        compiled: False calls the case as plain Python, with all that the host can do in it.
        max_bytes: What a compiled program may take: it holds as many cases at once as fit, 32 at most. A single case is
            run whatever it takes.
        progress: True shows a bar with the time left; a function is called with (done, total, what).

    Returns:
        An `xarray.Dataset`: a variable for each array that a case returns, with the axes of the sweep in front, then
        (of a measurement) block and wrt. `error` says why a case failed, whose figures are NaN (of whole numbers -1);
        `finished` which cases were run. Attributes tell versions, dtype, device, key, settings, compilations, the
        source's revision. `KeyboardInterrupt` returns what is done, with `interrupted` 1.

    Raises:
        TypeError: `case` does not take the axes; axes hold what is no number or word.
        ValueError: An axis is empty or repeats a value; `out` holds another sweep (the difference is named), or another
            process works on it; an `executor` for compiled programs.
        ImportError: xarray is not installed, or what writes `out`: `pip install 'localhessian[sweep]'`.

    Cost: a compilation for each combination of static values (a second one where the first does not fit `max_bytes`),
    then the cases. After every eight combinations `jax.clear_caches()` frees what JAX holds of finished shapes, except
    in the processes of an executor. On the
    CPU cases with convolutions run one by one in the same program: over several networks at once XLA groups
    convolutions, and measurements gain nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> import localhessian as lh
        >>> def case(scale, width):
        ...     operator = lh.symmetric_operator(lambda v: scale ** jnp.arange(width) * v, width)
        ...     return lh.condition_number(lh.spectrum(operator, lh.Dense()))
        >>> found = lh.sweep(case, {"scale": [1.0, 2.0], "width": [2, 3]}, static_axes="width")
        >>> print(found.value.dims, found.value.values.round(3).tolist(), found.attrs["compilations"])
        ('scale', 'width') [[1.0, 1.0], [2.0, 4.0]] 2
    """
    optional("xarray")
    expect_flag("compiled", compiled)
    expect_key(key)
    expect_limit("max_bytes", max_bytes)
    points = axes_of(axes, static_axes, compiled)
    function = case_of(case, points)
    _check_executor(executor, compiled)
    place = None if out is None else path_of(out)
    key = jax.random.key(0) if key is None else _typed(key)
    told = _identity(function, points, key, compiled, max_bytes)
    with contextlib.ExitStack() as stack:
        journal = None
        if place is not None:
            program = {"program": program_of(function, points, key)} if compiled else {}
            journal = stack.enter_context(journal_of(place, told | program))
        show = stack.enter_context(follow(progress, "case"))
        run = Run(points, journal, show, told | _provenance(function))
        programs = Programs(function, points, key, max_bytes) if compiled else None
        missing = [int(number) for _, cases in points.groups() for number in cases if number not in run.done]
        source = hosted(function, points, key, missing, executor) if programs is None else programs.records(run.has)
        return run.through(source, programs)


class Run:
    """One call of `sweep`: what is done, and where it goes."""

    def __init__(self, axes: Axes, journal: Journal | None, show: Progress, attributes: dict[str, Any]) -> None:
        """Begin with what the journal has."""
        self._axes, self._journal, self._show, self._attributes = axes, journal, show, attributes
        self._records: dict[int, Record] = {}
        for record in [] if journal is None else journal.records:
            if not any(record.errors):
                self._records[int(record.cases[0])] = record
        self.done = {int(number) for record in self._records.values() for number in record.cases}

    def has(self, number: int) -> bool:
        """Whether a case is finished."""
        return int(number) in self.done

    def through(self, source: Records, programs: Programs | None) -> Any:
        """Every record of the source kept; the dataset in the end, also where it is interrupted."""
        begun, interrupted = time.perf_counter(), False
        try:
            self._show(len(self.done), self._axes.count, "sweep")
            for record in source:
                self._keep(self._conforming(record))
                self._show(len(self.done), self._axes.count, self._what(record))
                if self._journal is not None and self._journal.is_due:
                    self._journal.publish(self._dataset(_compiling(programs)))
        except KeyboardInterrupt:
            interrupted = True
            source.close()
        seconds = round(time.perf_counter() - begun, 3)
        failed = sum(bool(error) for record in self._records.values() for error in record.errors)
        found = self._dataset(
            {**_compiling(programs), "failed": failed, "interrupted": int(interrupted), "seconds": seconds}
        )
        if self._journal is not None:
            self._journal.publish(found)
        if failed:
            first = next(e for _, record in sorted(self._records.items()) for e in record.errors if e)
            warnings.warn(f"{failed} of {self._axes.count} cases failed, the first by: {first}", stacklevel=3)
        return found

    def _conforming(self, record: Record) -> Record:
        """With what is of another kind than the cases before it counted as failed."""
        if record.answers is None:
            return record
        first = next((r.answers for r in self._records.values() if r.answers is not None), record.answers)
        unlike = record.answers.unlike(first, self._axes)
        if not unlike:
            return record
        return Record(record.cases, tuple(error or f"TypeError: {unlike}" for error in record.errors), None)

    def _keep(self, record: Record) -> None:
        self._records[int(record.cases[0])] = record
        self.done |= set(record.cases.tolist())
        if self._journal is not None:
            self._journal.add(record)

    def _what(self, record: Record) -> str:
        point = self._axes.point(int(record.cases[-1]))
        return ", ".join(
            f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in point.items()
        )

    def _dataset(self, more: Mapping[str, Any]) -> Any:
        records = [record for _, record in sorted(self._records.items())]
        plain = {
            name: value if isinstance(value, str | int | float) else json.dumps(value)
            for name, value in self._attributes.items()
        }
        return dataset(self._axes, records, {**plain, **more})


def _compiling(programs: Programs | None) -> dict[str, Any]:
    """How much was compiled."""
    if programs is None:
        return {"compilations": 0, "compile_seconds": 0.0}
    return {"compilations": programs.compilations, "compile_seconds": round(programs.compile_seconds, 3)}


def _check_executor(executor: Any, compiled: bool) -> None:
    if executor is None:
        return
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        raise TypeError(f"`executor` must be one of `concurrent.futures`, with a `submit`, got {short(executor)}.")
    if compiled:
        raise ValueError("`executor` runs cases as plain Python: pass `compiled=False` too, or leave it out.")


def _typed(key: Any) -> Any:
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if is_typed else jax.random.wrap_key_data(jnp.asarray(key))


def _identity(case: Case, axes: Axes, key: Any, compiled: bool, max_bytes: float) -> dict[str, Any]:
    """What the numbers of a sweep depend on: two with the same are the same sweep."""
    settings: Any = jax.config
    return {
        "case": case.name,
        "code": code_of(case.function),
        "axes": {name: list(values) for name, values in axes.values.items()},
        "static_axes": list(axes.static),
        "key": [str(jax.random.key_impl(key)), *np.asarray(jax.random.key_data(key)).tolist()],
        "compiled": int(compiled),
        "max_bytes": float(max_bytes) if compiled else 0.0,
        "dtype": str(jnp.result_type(float)),
        "matmul_precision": str(settings.jax_default_matmul_precision),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "localhessian": __version__,
    }


def _provenance(case: Case) -> dict[str, Any]:
    """The revision of the source that the case stands in, if it has one."""
    folder = folder_of(case)
    if folder is None:
        return {}
    try:
        git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        ran = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"revision": ran.stdout.strip()}
