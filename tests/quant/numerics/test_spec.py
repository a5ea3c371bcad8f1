"""The name of two widths, which every table and file shows."""

from __future__ import annotations

import re

import pytest

from dq.quant.numerics.spec import name_of
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("weight", "activation", "name"),
    [(8, 8, "int8"), (4, 4, "int4"), (16, 16, "int16"), (4, 8, "W4A8"), (8, 16, "W8A16")],
)
def test_widths_have_a_name(weight: int, activation: int, name: str) -> None:
    assert name_of(weight, activation) == name


def test_the_rule_stands_in_one_place() -> None:
    places = [ROOT / name for name in ("dq", "launcher", "slurm", "website", "benchmarks")]
    found = {
        path.relative_to(ROOT).as_posix()
        for place in places
        for path in place.rglob("*.py")
        if re.search(r"W\{[^}]*\}A\{", path.read_text(encoding="utf-8"))
    }
    assert found == {"dq/quant/numerics/spec.py"}
