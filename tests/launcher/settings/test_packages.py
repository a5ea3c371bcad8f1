"""A missing package ends a training before it starts, with one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.launcher.conftest import Launch


@pytest.mark.parametrize("command", ["train", "run", "qat"])
def test_the_launcher_ends_with_code_2_before_it_begins(
    command: str, launch: Launch, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    path = tmp_path / "board.py"
    hooks = "hooks=[dict(type='TensorboardLoggerHook')]"
    if command == "qat":
        text = f"quant = dict(training={{'log_config.{hooks.replace('=', chr(39) + ': ', 1)}}})"
    else:
        text = f"log_config = dict({hooks})"
    path.write_text(f"_base_ = [{str(config)!r}]\n{text}\n")
    words = ["--checkpoint", "none.pth"] if command == "qat" else []
    code, _, err = launch(command, path, "--work-dir", tmp_path / "w", *words)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "TensorboardLoggerHook needs the package tensorboard" in err
    assert not list((tmp_path / "w").glob("*/*.pth"))
