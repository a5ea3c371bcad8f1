"""The reference of the library: a page for each package that others import, one entry per name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import dq.dist
import dq.quant
import dq.sync
from website.docstrings import summary

BEGIN = """\
# `{package}`

{summary} [Examples](../library.md) in your own training loop.

"""


def pages() -> dict[str, str]:
    """Return the pages of the packages by their place in the site."""
    faces = {
        "quant": ("dq.quant", dq.quant, dq.quant.__all__),
        "dist": ("dq.dist", dq.dist, dq.dist.__all__),
        "sync": ("dq.sync", dq.sync, sorted(_functions(Path(dq.sync.__file__)))),
    }
    return {
        f"api/{name}.md": BEGIN.format(package=package, summary=summary(module))
        + "".join(f"::: {package}.{public}\n\n" for public in names)
        for name, (package, module, names) in faces.items()
    }


def _functions(path: Path) -> Iterator[str]:
    """Yield the functions that a module defines for others."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name
