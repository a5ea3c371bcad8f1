"""A disk without room: each command says in one line which file it could not write."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import NoReturn

import pytest

from tests.conftest import Once
from tests.launcher.conftest import Launch, on_ranks


def full(_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_after_the_record_of_the_run(draft: Path) -> None:
    if "run.json" not in draft.name:
        full(draft)


@pytest.fixture(scope="module")
def calibrated(config: Path, untrained: Path, once: Once) -> Path:
    """A calibrated checkpoint of the tiny detector."""

    def calibrate(folder: Path) -> None:
        done = on_ranks(1, "calibrate", config, "--checkpoint", untrained, "--work-dir", folder)
        assert done.returncode == 0, done.stderr[-3000:]

    return once("calibrated_untrained", calibrate) / "calibrated/calibrated.pth"


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("train", r"w/float/step_\d+\.pth|w/float/epoch_1\.pth"),
        ("calibrate", "w/calibrated/calibrated.pth"),
        ("quantize", "w/quantize/candidates/float.*json"),
        ("eval", "w/eval/summary.json"),
        ("analyze", "w/analyze/sensitivity.json"),
        ("export", "w/export/w.onnx"),
        ("show", "w/show/train/image_001.png"),
    ],
)
def test_the_file_is_named(
    command: str, file: str, launch: Launch, config: Path, untrained: Path, calibrated: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words: list[object] = [command, config, "--work-dir", tmp_path / "w"]
    if command != "train":
        from_float = command in ("calibrate", "quantize")
        words += ["--checkpoint", untrained if from_float else calibrated]
    words += {"train": ["--no-validate"], "quantize": ["--max-drop", "5"]}.get(command, [])
    monkeypatch.setattr("dq.whole_file.flush", full_after_the_record_of_the_run)
    code, out, err = launch(*words)
    assert code == 1, out + err
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert re.search(
        rf"/({file}) could not be written: No space left on device; .*make room", line
    ), line
    assert "Traceback" not in out + err
    assert not list((tmp_path / "w").rglob(".*.tmp"))


def test_a_full_folder_for_temporary_files_is_named(
    launch: Launch, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dq.detector.config.read.load_config_file", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = launch("train", config, "--work-dir", tmp_path / "w")
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert f"config {config} cannot be read, because it is first copied" in line, out
    assert f"No space left on device; make room in {tmp_path}, or let $TMPDIR name" in line
