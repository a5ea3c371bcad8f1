"""The checkpoint that a command starts from is not replaced by that command's own result."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.launcher.conftest import Launch, on_ranks

# By the folder that the checkpoint is in: the words of a command that writes this folder.
WORDS = {
    "calibrate": ("calibrated", "calibrate"),
    "quantize": ("quantize", "quantize", "--max-drop", 1),
    "qat": ("qat", "qat"),
    "qat, its control": ("control", "qat", "--control"),
    "run": ("calibrated", "run"),
    "run, its training": ("qat", "run"),
    "run, its control": ("control", "run", "--control"),
}


def tree(folder: Path) -> dict[str, str]:
    """Return the digest of each file in a work dir, but for logs."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "logs" not in path.parts
    }


@pytest.mark.parametrize("name", WORDS)
def test_a_start_that_the_command_would_replace_is_refused_before_any_work(
    launch: Launch, config: Path, untrained: Path, tmp_path: Path, name: str
) -> None:
    folder, command, *more = WORDS[name]
    start = tmp_path / str(folder) / "best.pth"
    start.parent.mkdir()
    start.write_bytes(untrained.read_bytes())
    before = tree(tmp_path)
    # However the path is spelt.
    given = tmp_path / "." / str(folder) / ".." / str(folder) / "best.pth"
    code, _, err = launch(command, config, "--checkpoint", given, "--work-dir", tmp_path, *more)
    assert code == 2
    assert err.startswith("error: ")
    assert f"is in {start.parent}, where this command writes its result" in err
    assert "choose another --work-dir" in err
    assert len(err.strip().splitlines()) == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", ["train", "run"])
def test_a_float_training_does_not_replace_what_load_from_names(
    launch: Launch, config: Path, untrained: Path, tmp_path: Path, command: str
) -> None:
    start = tmp_path / "float/float.pth"
    start.parent.mkdir()
    start.write_bytes(untrained.read_bytes())
    before = tree(tmp_path)
    options = ("--cfg-options", f"load_from={start}")
    code, _, err = launch(command, config, "--work-dir", tmp_path, *options)
    assert code == 2
    assert f"{start} is in {start.parent}, where this command writes its result" in err
    assert tree(tmp_path) == before


def test_a_qat_without_control_may_start_from_a_control(
    launch: Launch, config: Path, untrained: Path, tmp_path: Path
) -> None:
    start = tmp_path / "control/control.pth"
    start.parent.mkdir()
    start.write_bytes(untrained.read_bytes())
    given = ("--checkpoint", start, "--work-dir", tmp_path, "--no-validate")
    code, _, err = launch("qat", config, *given)
    assert code == 0, err
    assert start.read_bytes() == untrained.read_bytes()


@pytest.mark.slow
def test_one_rank_says_it_for_all(config: Path, untrained: Path, tmp_path: Path) -> None:
    start = tmp_path / "qat/qat.pth"
    start.parent.mkdir()
    start.write_bytes(untrained.read_bytes())
    done = on_ranks(2, "qat", config, "--checkpoint", start, "--work-dir", tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [
        f"error: {start} is in {start.parent}, where this command writes its result; choose"
        " another --work-dir"
    ]
