"""Long work tells how far it is: to a function, to a bar, or to nobody."""

import contextlib
import html
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from tqdm import tqdm

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
    elif notebook() is not None:
        yield _shown(unit)
    else:
        with tqdm(unit=unit) as bar:

            def show(done: int, total: int, what: str) -> None:
                bar.total = total
                bar.set_description_str(what, refresh=False)
                bar.update(done - bar.n)

            yield show


def notebook() -> Any:
    """IPython where this runs in a notebook; else None."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return ipython if hasattr(shell, "kernel") else None


def _shown(unit: str) -> Progress:
    """One bar of HTML that moves: what `tqdm` shows there needs widgets, or is a red block for each step."""
    display: Any = notebook().display
    shown = display.display(display.HTML("<progress></progress>"), display_id=True)

    def show(done: int, total: int, what: str) -> None:
        bar = f'<progress value="{done}" max="{total}"></progress>'
        shown.update(display.HTML(f"{bar} {done}/{total} {html.escape(unit)} {html.escape(what)}"))

    return show
