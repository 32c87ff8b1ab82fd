"""The context of a traced chain: what was given, what follows from the input, and for which shapes."""

from typing import Any

from localhessian._tree import pytree, static
from localhessian._types import Array, Context


@pytree
class CutContext:
    """The context of the blocks of a traced chain."""

    given: Context
    """What the user gave."""
    derived: tuple[Array, ...]
    """What later blocks take of the input: masks, tables, the input itself."""
    key: Any = static()
    """The program of every block: static, so whatever is compiled with this context is compiled for these shapes."""

    def __getitem__(self, name: Any) -> Any:
        """A part of what was given."""
        return self.given[name]


def given_of(context: Context) -> Context:
    """A context without what a traced chain derives from the inputs."""
    return context.given if isinstance(context, CutContext) else context
