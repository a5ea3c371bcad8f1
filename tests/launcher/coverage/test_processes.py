"""Commands in separate processes: their output, and processes that crash, hang or grow."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.coverage.chain import Chain
from launcher.coverage.processes import Limits, run
from launcher.coverage.row import CRASHED, REFUSED

pytestmark = pytest.mark.slow


def test_a_mistake_is_one_line_and_a_refused_row(tmp_path: Path) -> None:
    config = tmp_path / "missing.py"
    ended = run(["train", str(config)], tmp_path / "out", Limits())
    assert ended.code == 2
    assert ended.error.startswith(f"config {config} does not exist")
    assert not ended.has_traceback
    row = Chain(config, tmp_path, Limits()).row()
    assert row.result == REFUSED
    assert row.what.startswith("float: config missing.py does not exist")


def test_slow_and_large_ones_are_rows_and_not_the_end(tmp_path: Path) -> None:
    config = tmp_path / "missing.py"
    assert run(["train"], tmp_path / "a", Limits(seconds=0.0)).killed == "took more than 0 s"
    row = Chain(config, tmp_path, Limits(mib=1)).row()
    assert (row.result, row.what) == (CRASHED, "float: took more than 1 MiB")


def test_a_raw_traceback_is_a_crash(tmp_path: Path) -> None:
    target = "tests.launcher.coverage.test_processes:fall"
    ended = run([], tmp_path / "out", Limits(), target=target)
    assert ended.has_traceback
    assert ended.code == 1


def fall(words: list[str]) -> int:
    raise KeyError("raw")
