"""The pages for readers: their blocks of code, their code in the text, and their command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page for place in ("*.md", "docs/**/*.md", "examples/*.md") for page in ROOT.glob(place)
)

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})([\w+-]*)\n(.*?)^ *\2[ \t]*$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+")
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
# The first word of a line that is a command, after a prompt and variables.
_COMMAND = re.compile(
    r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?"
    r"(?:make|python3?|torchrun|srun|pip|pytest|launcher|dq-launcher|mkdocs)(?: |$)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of code on a page.

    Attributes:
        page: Its file.
        line: Of its first line, counted from 1.
        language: As the page says; empty if it does not.
        text: Without the fence or indentation.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the blocks of code of a page, between fences or indented."""
    text = page.read_text(encoding="utf-8")
    found = [_block(page, text, m.start(4), m[3], m[4]) for m in _FENCE.finditer(text)]
    rest = _FENCE.sub(lambda m: "\n" * m[0].count("\n"), text)
    lines = rest.splitlines(keepends=True)
    for match in _INDENTED.finditer(rest):
        number = rest.count("\n", 0, match.start())
        if not _in_list(lines[:number]):
            found.append(_block(page, rest, match.start(), "", match[0]))
    return sorted(found, key=lambda block: block.line)


def _block(page: Path, text: str, start: int, language: str, code: str) -> Block:
    lines = code.splitlines()
    indent = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
    code = "".join(f"{line[indent:]}\n" for line in lines)
    return Block(page=page, line=text.count("\n", 0, start) + 1, language=language, text=code)


def _in_list(before: list[str]) -> bool:
    """Whether the text before an indented line is an item of a list, which goes on there."""
    last = next((line for line in reversed(before) if line.strip() and line[0] != " "), "")
    return re.match(r"[-*+] |\d+\. ", last) is not None


def inline_code(page: Path) -> list[str]:
    """Return the code in the text of a page, outside of blocks."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in _INLINE.findall(text)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as a code host makes them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found: set[str] = set()
    for head in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-")
        number = 0
        while (full := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(full)
    return found


def command_lines(text: str) -> list[str]:
    """Return the command lines in a block, continued lines joined, without the rest (output)."""
    joined = re.sub(r"[ \t]*\\\n\s*", " ", text)
    # A line that is indented more goes on with the one before it.
    joined = re.sub(r"\n {3,}(?=\[)", " ", joined)
    return [line.strip() for line in joined.splitlines() if _COMMAND.match(line.strip())]


def words_of(line: str) -> list[list[str]]:
    """Return the words of each command on a line, as a user would write them.

    ``[--only NAME ...]`` is the option with a value, ``a|b`` is both in turn: the line is
    returned once for each.
    """
    found = []
    for command in _split(shlex.split(line, comments=True)):
        words = [_bare(word) for word in command]
        words = [word for word in words if word]
        count = max((word.count("|") for word in words), default=0) + 1
        for index in range(count):
            found.append([_choice(word, index) for word in words])
    return found


def _split(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in words:
        if word in ("&&", "||", "|", ";", "&"):
            yield command
            command = []
        else:
            command.append(word)
    yield command


def _bare(word: str) -> str:
    word = word.removeprefix("$") if word == "$" else word
    word = word[1:] if word.startswith("[") else word
    if word.count("]") > word.count("["):
        word = word.replace("]", "", 1) if word.endswith("]") else word
    return word.removesuffix("...")


def _choice(word: str, index: int) -> str:
    choices = word.split("|")
    return choices[min(index, len(choices) - 1)]
