"""Read text and XML files in any encoding that people's tools write."""

from __future__ import annotations

import codecs
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

_DECLARED = re.compile(rb"^\s*<\?xml[^>]*?encoding=[\"']([\w.-]+)[\"'][^>]*\?>")


def text_of(path: Path) -> str | None:
    """Return the text of a file, None if it cannot be read.

    UTF-8 and UTF-16 are told by their content; everything else is taken as Latin-1.
    """
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def lines_of(path: Path) -> list[str]:
    """Return the lines of a file without blanks around them; blank ones are left out."""
    return lines_in(text_of(path) or "")


def lines_in(text: str) -> list[str]:
    """Return the lines of a text without blanks around them; blank ones are left out."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def xml_of(path: Path) -> ElementTree.Element | None:
    """Return the root of an XML file, None if it cannot be read.

    Python's parser refuses encodings such as GBK, and Latin-1 that is not declared.
    """
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    try:
        return ElementTree.fromstring(raw)
    except (ElementTree.ParseError, ValueError, LookupError):
        pass
    declared = _DECLARED.match(raw)
    try:
        text = raw.decode(declared[1].decode()) if declared else text_of(path) or ""
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
    except (ElementTree.ParseError, ValueError, LookupError):
        return None
