"""Cases inside compiled programs: one for each point of the static axes, its cases in chunks that fit the memory."""

import ctypes
import gc
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from localhessian._blas import blas_threads
from localhessian._programs import compiler_options
from localhessian.analysis.sweeps._answers import Answers, Record, Records, answers_of, joined
from localhessian.analysis.sweeps._axes import Axes
from localhessian.analysis.sweeps._case import Case, keys_of
from localhessian.linalg import contains_convolution

CHUNK = 32
"""Cases of one call, at most: more gain nothing on a CPU, and progress comes in chunks."""

KEPT = 8
"""Shapes after which JAX forgets what it has traced and compiled: each leaves a megabyte there, in plain Python 30."""


class Programs:
    """Runs the cases of a sweep; counts what it compiles."""

    def __init__(self, case: Case, axes: Axes, key: Any, max_bytes: float) -> None:
        """Nothing is compiled yet."""
        self._case, self._axes, self._key, self._max_bytes = case, axes, key, max_bytes
        self.compilations, self.compile_seconds, self._kept = 0, 0.0, 0

    def records(self, has: Callable[[int], bool]) -> Records:
        """Of every chunk, in order; `has` tells which are there already, by the number of their first case.

        Which cases make a chunk depends on the program alone, never on what is there.

        Yields:
            What became of a chunk.
        """
        for static, cases in self._axes.groups():
            if not all(map(has, cases)):
                yield from self._group(static, cases, has)
                if self.compilations >= self._kept + KEPT:
                    self._kept = self.compilations
                    forget()

    def _group(self, static: dict[str, Any], cases: np.ndarray, has: Callable[[int], bool]) -> Records:
        begun = time.perf_counter()
        try:
            run, width = self._program(static, cases)
        except Exception as error:  # what a case raises while it is traced, it raises for all of these points
            yield Record(cases, (told(error),) * len(cases), None)
            return
        finally:
            self.compile_seconds += time.perf_counter() - begun
        for start in range(0, len(cases), width):
            chunk = cases[start : start + width]
            if not all(map(has, chunk)):
                yield _chunk(run, chunk)

    def _program(self, static: dict[str, Any], cases: np.ndarray) -> tuple[Callable[[np.ndarray], Answers], int]:
        """A function of the numbers of some cases, and how many it takes at once."""
        width = _even(len(cases), CHUNK)
        while True:
            traced = self._traced(static, cases, width)
            if width > 1 and jax.default_backend() == "cpu" and contains_convolution(traced.jaxpr):
                # Over kernels of several networks convolutions become grouped ones: measurements gain nothing by that
                # (0.17 s a network together, 0.16 one by one, of four convolutions), and hold the memory of all.
                width, traced = 1, self._traced(static, cases, 1)
            program = traced.lower().compile(compiler_options())
            self.compilations += 1
            needs = _bytes(program)
            if needs <= self._max_bytes or width == 1:
                break
            width = _even(len(cases), max(1, min(width - 1, int(width * self._max_bytes / needs))))

        def run(chunk: np.ndarray) -> Answers:
            # Programs decompose many small matrices, which gain nothing from threads of BLAS and lose to several.
            with blas_threads(1):
                return _first(answers_of(program(*self._arguments(chunk, width)), 1), len(chunk))

        return run, width

    def _traced(self, static: dict[str, Any], cases: np.ndarray, width: int) -> Any:
        many = jax.vmap(lambda values, key: self._case({**static, **values}, key))
        if width == 1:  # with the axis of the cases all the same, and without its cost
            many = lambda values, keys: jax.tree.map(
                lambda array: jax.numpy.asarray(array)[None],
                self._case({**static, **{name: v[0] for name, v in values.items()}}, keys[0]),
            )
        return jax.jit(many).trace(*self._arguments(cases[:width], width))

    def _arguments(self, chunk: np.ndarray, width: int) -> tuple[dict[str, jax.Array], Any]:
        """Of a whole width: the last case stands in for those that are not there."""
        filled = np.concatenate([chunk, np.repeat(chunk[-1:], width - len(chunk))])
        return self._axes.arrays(filled), keys_of(self._key, filled)


def forget() -> None:
    """What JAX has traced, and give the memory back, which the C library of Linux keeps in pieces."""
    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _chunk(run: Callable[[np.ndarray], Answers], chunk: np.ndarray) -> Record:
    """All at once; where that fails, case by case."""
    try:
        return Record(chunk, ("",) * len(chunk), run(chunk))
    except Exception as error:  # one case's failure, whatever it is, must not cost the others
        if len(chunk) == 1:
            return Record(chunk, (told(error),), None)
    alone = [_chunk(run, one[None]) for one in chunk]
    answers = [record.answers for record in alone if record.answers is not None]
    return Record(chunk, tuple(record.errors[0] for record in alone), joined(answers) if answers else None)


def _even(count: int, most: int) -> int:
    """How many at once, so that the last of them are nearly as many."""
    return math.ceil(count / math.ceil(count / most))


def told(error: BaseException) -> str:
    """An error in one line; of what a callback raised the last one, which says it."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1] if 'Traceback' in lines[0] else lines[0]}"


def _first(answers: Answers, count: int) -> Answers:
    data = {name: array[:count] for name, array in answers.data.items()}
    return Answers(data, answers.dims, answers.labels, answers.attributes)


def _bytes(program: Any) -> int:
    """What a compiled program needs beside its constants; 0 where the device does not tell."""
    found = program.memory_analysis()
    names = ("temp_size_in_bytes", "argument_size_in_bytes", "output_size_in_bytes")
    return sum(int(getattr(found, name, 0) or 0) for name in names)
