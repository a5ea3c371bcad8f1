"""Several workers share the tests out by file, start the long ones first and prepare data once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.parallel import TOGETHER, in_order, unit

ROOT = Path(__file__).resolve().parents[2]

CONFTEST = """
from tests.conftest import (
    once, pytest_collection_modifyitems, pytest_configure, pytest_xdist_make_scheduler)
"""
TEST = """
import os, time
import pytest

def write(folder):
    time.sleep(0.5)
    with (folder / "writers").open("a") as file:
        file.write("once")

@pytest.mark.parametrize("number", range(3))
def test_it(number, once, worker_id):
    assert (once("data", write) / "writers").read_text() == "once"
    with open(os.environ["SEEN"], "a") as file:
        file.write(f"{worker_id} {__file__}\\n")
"""
FILES = ("tests/slurm/test_a.py", "tests/slurm/test_b.py", "tests/test_c.py", "tests/test_d.py")


def test_units_are_files_and_the_folders_that_must_stay_together() -> None:
    assert unit("tests/dist/test_ranks.py::test_it[a::b]") == "tests/dist/test_ranks.py"
    assert {unit(f"tests/slurm/test_{name}.py::test_it") for name in "ab"} == set(TOGETHER)
    assert all((ROOT / folder).is_dir() for folder in TOGETHER)


def test_together_comes_first_then_fast_files_then_those_with_the_most_slow_tests() -> None:
    tests = [
        *[("tests/test_few.py::a", True), ("tests/test_few.py::b", False)],
        ("tests/test_fast.py::a", False),
        *[("tests/test_many.py::a", True), ("tests/test_many.py::b", True)],
        ("tests/slurm/test_a.py::a", True),
        *[("tests/test_faster.py::b", False), ("tests/test_faster.py::a", False)],
        ("tests/slurm/test_b.py::a", True),
    ]
    assert in_order(tests) == [5, 8, 6, 7, 2, 3, 4, 0, 1]


@pytest.mark.slow
def test_two_workers_share_files_and_what_is_made_once(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(TEST)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-n", "2", "--import-mode=importlib", "-rA"]
    done = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "temporary"), str(tmp_path / "tests")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "SEEN": str(tmp_path / "seen")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Names are those of a run in one process.
    passed = re.findall(r"^PASSED (.*)$", done.stdout, re.MULTILINE)
    assert sorted(passed) == sorted(f"{name}::test_it[{n}]" for name in FILES for n in range(3))
    workers: dict[str, set[str]] = {}
    for line in (tmp_path / "seen").read_text().splitlines():
        worker, path = line.split()
        workers.setdefault(unit(str(Path(path).relative_to(tmp_path))), set()).add(worker)
    assert len(workers) == 3
    assert all(len(own) == 1 for own in workers.values())
    assert set.union(*workers.values()) == {"gw0", "gw1"}
