"""Docstrings as the reference prints them: an `Example` is code."""

import griffe


class Examples(griffe.Extension):
    """Google's style knows `Examples` only; without it doctests would be text."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rename the section of each docstring as it is read."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
