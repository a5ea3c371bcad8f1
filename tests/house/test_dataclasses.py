"""Dataclasses do not change and take no unknown attributes, apart from those that say otherwise."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dq", "launcher", "slurm", "website")

# Records that one function fills step by step.
FILLED = {
    "dq/detector/data/checks/boxes.py",
    "dq/detector/model/autocast.py",
    "dq/detector/model/graph.py",
    "dq/quant/analysis/statistics.py",
    "dq/quant/integer/modules.py",
    "dq/quant/training/oscillation.py",
}


def flags(text: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each dataclass of a file with the flags that are set."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            call = decorator if isinstance(decorator, ast.Call) else None
            if ast.unparse(call.func if call else decorator).endswith("dataclass"):
                keywords = call.keywords if call else []
                on = {str(k.arg) for k in keywords if ast.literal_eval(k.value) is True}
                yield node.name, on


@pytest.fixture(scope="module")
def found() -> list[tuple[str, str, set[str]]]:
    return [
        (path.relative_to(ROOT).as_posix(), name, on)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for name, on in flags(path.read_text())
    ]


def test_dataclasses_have_slots_and_are_frozen(found: list[tuple[str, str, set[str]]]) -> None:
    for place, name, on in found:
        assert "slots" in on, f"{name} in {place}"
        assert "frozen" in on or place in FILLED, f"{name} in {place}"


def test_exceptions_are_needed(found: list[tuple[str, str, set[str]]]) -> None:
    assert len(found) > 60
    assert {place for place, _, on in found if "frozen" not in on} == FILLED
