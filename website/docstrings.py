"""Read a docstring: its first paragraph, and what it says about each attribute or argument."""

from __future__ import annotations

import importlib
import inspect
import re

_SECTION = re.compile(r"^(?:Attributes|Args):\n(?P<body>(?:(?: {4}.*)?\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(?P<name>\w+): (?P<text>.*(?:\n {8}.*)*)", re.MULTILINE)


def summary(of: object) -> str:
    """Return the first paragraph of an object's docstring as one line."""
    return " ".join((inspect.getdoc(of) or "").partition("\n\n")[0].split())


def module_summary(name: str) -> str:
    """Return the first paragraph of a module's docstring as one line."""
    return summary(importlib.import_module(name))


def meaning(kind: type, name: str) -> str:
    """Return what a class's docstring says about an attribute, as one line.

    Raises:
        ValueError: It says nothing about it.
    """
    text = (inspect.getdoc(kind) or "") + "\n"
    for section in _SECTION.finditer(text):
        for entry in _ENTRY.finditer(section["body"]):
            if entry["name"] == name:
                return " ".join(entry["text"].split())
    where = f"{kind.__module__}.{kind.__name__}"
    raise ValueError(f"the docstring of {where} does not say what {name} is")
