"""Draw the imports between packages into ``docs/architecture.md``: ``-m tests.house.drawing``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.house.order import ORDER, ROOT, imported, packages_of

PAGE = ROOT / "docs/architecture.md"
_MARKS = re.compile(r"(<!-- drawing (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def page(text: str) -> str:
    """Return the page with every drawing made again."""
    return _MARKS.sub(lambda found: found[1] + "\n".join(drawing(found[2])) + "\n" + found[3], text)


def drawing(place: str) -> Iterator[str]:
    """Yield the lines of the table and graph of a part's packages, read from the source."""
    yield ""
    yield "| package | what is inside | files |"
    yield "| --- | --- | --- |"
    for name in ORDER[place]:
        folder = ROOT / place / name
        about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        files = [p for p in folder.rglob("*.py") if p.name != "__init__.py"]
        yield f"| `{name}` | {about.splitlines()[0]} | {len(files)} |"
    yield ""
    yield "```mermaid"
    yield "graph BT"
    for name in ORDER[place]:
        files = sorted((ROOT / place / name).rglob("*.py"))
        others = {other for path in files for other in imported(path, place)} & packages_of(place)
        for other in sorted(others - {name}):
            yield f"    {name} --> {other}"
    yield "```"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
