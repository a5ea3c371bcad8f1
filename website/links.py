"""Links of a page: found outside of code, and made to fit the place of the page in the site."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from posixpath import dirname, join, normpath, relpath

# Fenced blocks and `code`, in which nothing is a link.
_CODE = re.compile(
    r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[ \t]*$"
    r"|(?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)",
    re.MULTILINE | re.DOTALL,
)
# A link whose text is the path of a page.
_BY_PATH = re.compile(r"\[(?P<text>[\w./-]+\.md)\](?=\((?P<target>[^\s)#]+))")
# [text](target), [name]: target, src="target", href="target".
_LINK = re.compile(
    r"(?P<before>\]\(|^\[[^\]]+\]:[ \t]+|\b(?:src|href)=\")(?P<target>[^\s)\"]+)", re.MULTILINE
)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//|#", re.IGNORECASE)


def prose(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a page in order, each with whether it is text and not code."""
    end = 0
    for code in _CODE.finditer(text):
        yield text[end : code.start()], True
        yield code[0], False
        end = code.end()
    yield text[end:], True


def links_of(text: str) -> Iterator[str]:
    """Yield where the links of a page lead, with their anchors."""
    for part, is_text in prose(text):
        yield from (link["target"] for link in _LINK.finditer(part) if is_text)


def targets(text: str) -> Iterator[str]:
    """Yield the files that a page links to, without anchors and addresses."""
    for link in links_of(text):
        if not _ELSEWHERE.match(link):
            yield link.partition("#")[0]


def rewritten(text: str, change: Callable[[str], str]) -> str:
    """Return a page with the targets of its links changed, anchors kept.

    Args:
        text: Of the page.
        change: Gives the new target for a target without its anchor.
    """

    def replace(link: re.Match[str]) -> str:
        if _ELSEWHERE.match(link["target"]):
            return link[0]
        name, mark, anchor = link["target"].partition("#")
        return f"{link['before']}{change(name)}{mark}{anchor}"

    return "".join(_LINK.sub(replace, part) if is_text else part for part, is_text in prose(text))


def titled(text: str, title: Callable[[str], str | None]) -> str:
    """Return a page on which links named by a path, ``[ptq.md](ptq.md)``, have a title instead.

    Args:
        text: Of the page.
        title: Gives the title of a link's target; None keeps the path.
    """

    def replace(link: re.Match[str]) -> str:
        return f"[{title(link['target']) or link['text']}]"

    return "".join(_BY_PATH.sub(replace, p) if is_text else p for p, is_text in prose(text))


def heading(text: str) -> str | None:
    """Return the title of a page: its first heading."""
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found and found[1].strip()


def resolved(target: str, page: str) -> str:
    """Return the path of a link's target, relative to the folder that ``page`` is relative to."""
    return normpath(join(dirname(page), target))


def relative(path: str, page: str) -> str:
    """Return what to write on ``page`` to link to ``path``; both relative to the same folder."""
    return relpath(path, dirname(page) or ".")
