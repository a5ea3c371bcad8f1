"""A chain that is killed and resumed has the results of an undisturbed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kills import differences, is_new, main, times_of


@pytest.mark.slow
def test_a_chain_killed_twice_ends_with_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--times", "2", "--ranks", "1", "--work-dir", str(tmp_path / "work")]
    code = main([*words, "--write", str(tmp_path / "kills.md")])
    assert code == 0, capsys.readouterr().out
    assert "| 1 | 2 |" in (tmp_path / "kills.md").read_text()


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}, 0),
        ({"a": torch.ones(2)}, {"a": torch.tensor([1.0, 1.0000001])}, 1),
        ({"a": torch.ones(2)}, {"a": torch.ones(2).double()}, 1),
        ({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.5}]}, 1),
        ({"a": [1, 2]}, {"a": [1]}, 1),
        ({"a": 1}, {"a": 1, "b": 2}, 1),
        ({"step_s": 1.0, "run_id": "x"}, {"step_s": 2.0, "run_id": "y"}, 0),
    ],
)
def test_differences_are_found(one: Any, other: Any, wanted: int) -> None:
    assert len(list(differences(one, other, ""))) == wanted


def test_files_are_new_once_they_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "step_1.pth"
    path.write_text("a")
    before = times_of(tmp_path)
    assert not is_new(path, before)
    assert not is_new(tmp_path / "none", before)
    path.unlink()
    path.write_text("b")
    assert is_new(path, {**before, path: before[path] - 1})
