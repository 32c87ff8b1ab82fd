"""Long work tells how far it is: to a function, to a bar, or to nobody."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

from tqdm.auto import tqdm

from localhessian._arguments import expect_function

Progress: TypeAlias = Callable[[int, int, str], None]
"""progress(done, total, what)."""


def silent(done: int, total: int, what: str) -> None:
    """Nobody is told."""


@contextlib.contextmanager
def follow(progress: Progress | bool | None, unit: str) -> Iterator[Progress]:
    """A function to call with (done, total, what): the one given, or one that moves a bar, or one that is silent."""
    if not (progress is None or isinstance(progress, bool)):
        expect_function("progress", progress, "True, False or a function of (done, total, what)")
    if not progress:
        yield silent
    elif callable(progress):
        yield progress
    else:
        with tqdm(unit=unit) as bar:

            def show(done: int, total: int, what: str) -> None:
                bar.total = total
                bar.set_description_str(what, refresh=False)
                bar.update(done - bar.n)

            yield show
