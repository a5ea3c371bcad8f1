"""Markdown tables and links to the source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# References to names, `name`, and literals, ``name``, look the same on a page.
_LITERAL = re.compile(r"``(.+?)``")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a ``|`` in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return _LITERAL.sub(r"`\1`", text).replace("|", "\\|")


def code(text: object) -> str:
    """Return a text as code."""
    return f"`{text}`"


def source_link(kind: type, depth: int) -> str:
    """Return a class's name as a link to the file of the repository that defines it.

    Args:
        kind: The class.
        depth: How many folders the page is below ``docs``.
    """
    path = kind.__module__.replace(".", "/") + ".py"
    return f"[`{kind.__name__}`]({'../' * (depth + 1)}{path})"
