"""One number says that a signal stopped a job, wherever it is set or read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dq.exit_codes import STOPPED_CODE
from launcher import failure
from slurm import task

ROOT = Path(__file__).resolve().parents[1]
# `slurm` works without `dq`, on login nodes.
OWN = {"dq/exit_codes.py", "slurm/task.py", "slurm/state.py"}


def test_all_mean_the_same() -> None:
    assert failure.STOPPED == task.STOPPED == STOPPED_CODE == 75


@pytest.mark.parametrize("package", ["dq", "launcher", "slurm"])
def test_nobody_else_writes_the_number(package: str) -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == STOPPED_CODE
    }
    assert found <= OWN
