"""Cells in columns, as lines of text: for terminals and files, and the same in a notebook."""

import io
from collections.abc import Iterable, Mapping, Sequence

from localhessian._optional import optional

WIDEST = 400
"""Characters of a line; nothing is wrapped."""


def grid(columns: Mapping[str, str], sections: Iterable[tuple[str, Iterable[Sequence[str]]]]) -> list[str]:
    """Lines, the headings of the columns first, with a rule beneath.

    Args:
        columns: By heading (a line break is one there too), `"left"` or `"right"`.
        sections: A heading and rows; an empty heading shows none.
    """
    drawn = optional("rich.table").Table(box=optional("rich.box").SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading, side in columns.items():
        drawn.add_column(heading, justify=side, no_wrap=True)
    text = optional("rich.text").Text
    headings: dict[str, str] = {}
    for heading, rows in sections:
        drawn.add_section()
        if heading:
            # It is wider than its column, so it is put in afterwards.
            headings[f"@{len(headings)}"] = heading
            drawn.add_row(f"@{len(headings) - 1}")
        for row in rows:
            drawn.add_row(*map(text, row))  # what a cell says is no markup
    out = io.StringIO()
    # By itself it shows the table in a notebook, and colors it where the environment says so.
    console = optional("rich.console").Console(
        file=out, width=WIDEST, force_jupyter=False, force_terminal=False, color_system=None, legacy_windows=False
    )
    console.print(drawn)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    lines = [f" {headings[line.strip()]}" if line.strip() in headings else line for line in lines]
    return "\n".join(lines).strip("\n").split("\n")
