"""docs/architecture.md names what is there: names are defined where it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.house.order import ROOT

TEXT = (ROOT / "docs/architecture.md").read_text()
NAMES = sorted(set(re.findall(r"`(\w+)` in `([\w/.]+\.py)`", TEXT)))


def defined(path: Path) -> set[str]:
    """Return the names that a module defines itself."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


@pytest.mark.parametrize(("name", "path"), NAMES)
def test_every_name_is_defined_where_the_page_says(name: str, path: str) -> None:
    assert name in defined(ROOT / path)


def test_the_page_names_much() -> None:
    assert len(NAMES) > 15
