"""Every script of examples/ runs as a user starts it, uses public names alone, and is listed."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "examples"
SCRIPTS = sorted(FOLDER.rglob("*.py"))
# Their public names are in `__all__`, or, for `dq.sync`, are what docs/library.md shows.
PUBLIC = {"dq.quant", "dq.dist", "dq.sync"}
# What a started process says of itself, whoever starts it.
FAULTS = ("Traceback", "fatal:", "error:")


def run(folder: Path, *command: object, more: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with the checkout's packages, and ``more`` beside them."""
    environ = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environ |= {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{more}".rstrip(os.pathsep),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs(script: Path, tmp_path: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) >= 2
    assert not [fault for fault in FAULTS if fault in done.stderr]
    # Nothing lies about in the folder where it was started.
    assert {path.name for path in tmp_path.iterdir()} <= {"runs"}
    assert {path.name for path in tmp_path.glob("runs/*")} <= {"examples"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_says_what_it_shows_and_how_it_is_started(script: Path) -> None:
    text = script.read_text()
    said = ast.get_docstring(ast.parse(text)) or ""
    assert said.splitlines()[0].endswith(".")
    assert f"    python examples/{script.name}" in said or f" examples/{script.name}" in said
    assert 60 <= len(text.splitlines()) <= 125
    listed = (FOLDER / "README.md").read_text()
    assert f"| [{script.name}]({script.name}) |" in listed


def imported(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield each module of ours that a script imports, with the name that it takes from it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_imports_public_names_alone(script: Path) -> None:
    text = script.read_text()
    for module, name in imported(text):
        if module.split(".")[0] in ("dq", "launcher", "slurm", "tests", "benchmarks"):
            assert module in PUBLIC, module
            public = getattr(importlib.import_module(module), "__all__", None)
            assert name is None or public is None or name in public, name
    public = importlib.import_module("dq.quant").__all__
    assert [
        name for name in re.findall(r"\bdq\.(?!quant|dist|sync)(\w+)", text) if name not in public
    ] == []
