"""No two places have six lines of the same logic, whatever they call their variables."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dq", "launcher", "slurm", "website")
LINES = 6

Place = tuple[str, int]


def copies(texts: dict[str, str], lines: int = LINES) -> list[list[Place]]:
    """Return groups of places (file and line) where as many lines of logic are the same.

    Names of variables and the text of strings do not count, nor do signatures, imports, docstrings
    and class bodies, which say what there is and do nothing.

    Args:
        texts: The source of each file.
        lines: Of code as `ast.unparse` writes it.
    """
    found: dict[tuple[str, ...], set[Place]] = defaultdict(set)
    for name, text in texts.items():
        for body in bodies(ast.parse(text)):
            for window in windows(body, lines):
                found[renamed(window)].add((name, window[0].lineno))
    return sorted(sorted(places) for places in found.values() if len(places) > 1)


def bodies(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    """Yield every list of statements in functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            continue
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                yield [each for each in statements if not _says_only(each)]


def _says_only(statement: ast.stmt) -> bool:
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_text or isinstance(statement, ast.Import | ast.ImportFrom)


def windows(body: Sequence[ast.stmt], lines: int) -> Iterator[Sequence[ast.stmt]]:
    """Yield from each statement on as many as have this number of lines together."""
    lengths = [len(ast.unparse(each).splitlines()) for each in body]
    for begin in range(len(body)):
        end, number = begin, 0
        while end < len(body) and number < lines:
            number += lengths[end]
            end += 1
        if number >= lines:
            yield body[begin:end]


def renamed(window: Sequence[ast.stmt]) -> tuple[str, ...]:
    """Return what the statements do, with variables numbered in the order in which they occur."""
    numbers: dict[str, str] = {}
    found: list[str] = []

    def number(name: str) -> str:
        return name if name[:1].isupper() else numbers.setdefault(name, f"name {len(numbers)}")

    def visit(node: ast.AST) -> None:
        found.append(type(node).__name__)
        if isinstance(node, ast.Name):
            found.append(number(node.id))
        elif isinstance(node, ast.arg):
            found.append(number(node.arg))
        elif isinstance(node, ast.Constant):
            found.append("text" if isinstance(node.value, str) else repr(node.value))
        elif isinstance(node, ast.JoinedStr):
            found.append("text")
        else:
            for _, value in ast.iter_fields(node):
                for each in value if isinstance(value, list) else [value]:
                    if isinstance(each, ast.AST):
                        visit(each)
                    else:
                        found.append(str(each))
        found.append("end")

    for statement in window:
        visit(statement)
    return tuple(found)


def test_nothing_stands_twice() -> None:
    texts = {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    assert len(texts) > 300
    assert copies(texts) == []


FIRST = """
def one(a, b):
    \"\"\"Say something.\"\"\"
    c = a + b
    if c:
        print("yes")
        return c
    d = [c for c in a]
    return d.sort(b)
"""
SECOND = """
def other(x, y):
    import os
    z = x + y
    if z:
        print("no")
        return z
    w = [v for v in x]
    return w.sort(y)
"""


def test_copies_with_other_names_are_found_and_other_code_is_not() -> None:
    shifted = SECOND.replace("[v for v", "[z for z")
    assert copies({"a": FIRST, "b": shifted}) == [[("a", 4), ("b", 4)]]
    assert copies({"a": FIRST, "b": shifted.replace("x + y", "x - y")}) == []
    assert copies({"a": FIRST, "b": shifted.replace(".sort", ".index")}) == []
    assert copies({"a": FIRST, "b": shifted}, lines=7) == []
