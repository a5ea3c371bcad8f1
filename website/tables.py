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


def with_plain_bars(text: str) -> str:
    """Return a page with ``|`` for each ``\\|`` in the code of its tables.

    A code host needs the backslash, and the site would show it.
    """

    def plain(row: re.Match[str]) -> str:
        return re.sub(r"`[^`]+`", lambda span: span[0].replace("\\|", "|"), row[0])

    return re.sub(r"^\s*\|.*$", plain, text, flags=re.MULTILINE)


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
