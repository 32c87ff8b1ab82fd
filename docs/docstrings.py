"""Docstrings as the reference prints them."""

import griffe

SAID = {
    "Example:\n": "Examples:\n",  # Google's style knows no other; doctests would be text
    "docs/theory.md": "[What is computed][what-is-computed]",
    "docs/training.md": "[Training by local Hessians][training-by-local-hessians]",
}


class Docstrings(griffe.Extension):
    """Examples as code, pages as links, and of a constructor no more than its signature."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rewrite each docstring as it is read."""
        if obj.name in {"__init__", "__post_init__"}:
            obj.docstring = None
        if obj.docstring:
            for written, shown in SAID.items():
                obj.docstring.value = obj.docstring.value.replace(written, shown)
