"""Cases as plain Python, one after the other or over an executor of `concurrent.futures`."""

import concurrent.futures as cf
import contextlib
import time
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localhessian.analysis.sweeps._answers import Answers, Record, Records, answers_of
from localhessian.analysis.sweeps._axes import Axes
from localhessian.analysis.sweeps._case import Case
from localhessian.analysis.sweeps._compiled import KEPT, forget, told

WAITING = 32
"""Cases that an executor is given at once: all at once would hold all their arguments."""
ASKED = 0.5
"""Seconds between the questions whether a job is done."""


def hosted(case: Case, axes: Axes, key: Any, cases: list[int], executor: Any) -> Records:
    """A record of each case, as it is finished."""
    wide = jnp.result_type(float) == jnp.float64
    settings = wide, np.asarray(jax.random.key_data(key)), str(jax.random.key_impl(key))
    jobs = {number: (case, axes.point(number), number, *settings) for number in cases}
    yield from _here(jobs, axes) if executor is None else _spread(jobs, executor)


def _here(jobs: dict[int, tuple], axes: Axes) -> Records:
    """One after the other; programs of finished shapes are freed, as those of compiled cases."""
    shapes = set[tuple[Any, ...]]()
    for number, job in jobs.items():
        shape = tuple(job[1][name] for name in axes.static)
        if shape not in shapes and len(shapes) == KEPT:
            forget()
            shapes.clear()
        shapes.add(shape)
        yield _record(number, evaluate(*job))


def evaluate(case: Case, point: dict[str, Any], number: int, wide: bool, words: np.ndarray, impl: str) -> Answers | str:
    """What one case returns, or why it failed: in whatever process this runs."""
    try:
        with jax.enable_x64(wide):
            key = (
                jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(words), impl=impl), number)
                if case.takes_key
                else None
            )
            return answers_of(case(point, key))
    except Exception as error:  # one case's failure, whatever it is, must not cost the others
        return told(error)


def _record(number: int, found: Answers | str) -> Record:
    cases = np.array([number])
    return Record(cases, (found,), None) if isinstance(found, str) else Record(cases, ("",), found)


def _spread(jobs: dict[int, tuple], executor: Any) -> Records:
    """A bounded number at a time; what a killed process took along is tried once more, alone."""
    pool, mine, queue = executor, [], list(jobs)
    suspects: list[int] = []
    running: dict[Any, int] = {}
    try:
        while queue or suspects or running:
            is_broken = False
            # One suspect at a time, so that who kills a process is known.
            waiting = queue[: WAITING - len(running)] or ([] if running else suspects[:1])
            for number in waiting:
                try:
                    running[pool.submit(evaluate, *jobs[number])] = number
                except cf.BrokenExecutor:
                    is_broken = True
                    break
                queue = queue[1:] if queue else queue
            for future in _finished(running):
                number = running.pop(future)
                found = _outcome(future)
                is_broken |= found is None
                if found is None and number not in suspects:
                    suspects.append(number)
                    continue
                if number in suspects:
                    suspects.remove(number)
                yield _record(number, found or "BrokenExecutor: its process ended abruptly while this case ran alone")
            if is_broken and not running:
                pool = _another(pool)
                if pool is None:
                    break
                mine.append(pool)
        for number in [*queue, *suspects]:
            yield _record(number, f"BrokenExecutor: the {type(executor).__name__} broke, and cannot be made again here")
    finally:
        for future in running:
            future.cancel()
        for own in mine:
            own.shutdown(wait=False, cancel_futures=True)


def _finished(running: Collection[Any]) -> list[Any]:
    """Those that are done, at least one; jobs of submitit are no futures that wake who waits, and are asked."""
    if all(isinstance(future, cf.Future) for future in running):
        return list(cf.wait(running, return_when=cf.FIRST_COMPLETED).done)
    while not (done := [job for job in running if job.done()]):
        time.sleep(ASKED)
    return done


def _outcome(future: Any) -> Answers | str | None:
    """Its answer; None where its process ended."""
    try:
        return future.result()
    except cf.BrokenExecutor:
        return None
    except Exception as error:  # of the executor: a task that cannot be sent, a worker that was lost
        # What pickling raises; `evaluate` itself raises nothing.
        if isinstance(error, AttributeError | TypeError) or "Pickling" in type(error).__name__:
            return (
                "it cannot be sent to another process: make the case a function at the top of a module, of arguments "
                f"that can be pickled ({told(error)})"
            )
        return told(error)


def _another(pool: Any) -> Any:
    """A pool of processes like one that is broken; None of another kind."""
    if not isinstance(pool, cf.ProcessPoolExecutor):
        return None
    settings = {name: getattr(pool, f"_{name}", None) for name in ("max_workers", "mp_context", "initializer")}
    with contextlib.suppress(Exception):
        pool.shutdown(wait=False)
    return cf.ProcessPoolExecutor(**settings, initargs=getattr(pool, "_initargs", ()))
