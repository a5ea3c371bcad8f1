"""Many tools silently skip a folder called ``dist``; ours must include it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_ruff_reads_dq_dist() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--show-files", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "dq/dist/exchange/collectives.py" in done.stdout
    assert "tests/dist/exchange/test_collectives.py" in done.stdout


def test_git_does_not_ignore_dq_dist() -> None:
    command = ["git", "check-ignore", "dq/dist/new_file.py", "tests/dist/test_new.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, f"ignored: {done.stdout}"


@pytest.mark.slow
def test_pytest_collects_tests_of_dq_dist() -> None:
    # From the folder above it, without the time to import all other tests.
    others = [
        path for path in (ROOT / "tests").iterdir() if path.name not in ("dist", "conftest.py")
    ]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests"]
    command += [f"--ignore={path}" for path in others]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "tests/dist/exchange/test_collectives.py" in done.stdout, done.stdout[-2000:]
