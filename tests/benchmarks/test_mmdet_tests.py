"""The command that runs mmdet's own tests: on the installed mmdet, with numpy's removed names."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.mmdet_tests import command, main

GOOD = """
import numpy, mmdet.models
def test_names():
    assert numpy.array([1.5]).astype(numpy.int) == 1
    assert "site-packages" in mmdet.__file__
"""


def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 2
    assert "has no tests; give a folder with tests and configs of mmdet" in capsys.readouterr().err
    for name in ("tests", "configs", "mmdet"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="contains mmdet's sources too"):
        command(tmp_path, (), 60)


@pytest.mark.slow
def test_names_are_restored_before_a_test_imports_mmdet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").mkdir()
    folder = tmp_path / "tests" / "test_data"
    folder.mkdir(parents=True)
    (folder / "test_good.py").write_text(GOOD)
    (folder / "test_bad.py").write_text("def test_bad():\n    assert False\n")
    assert main([str(tmp_path)]) == 1
    assert "1 failed, 1 passed" in capfd.readouterr().out
