"""The training's side of the relay: a relay that cannot start never ends the training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from dq.tracking.record.run import Run, read_run
from dq.tracking.tracker import FolderTracker
from dq.tracking.wandb_copy.relay_process import Relay

RUN = Run(id="abcd1234", experiment="exp", stage="qat")


def refuse(**_: Any) -> str:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("full", ["temporary folder", "folder of the log"])
def test_a_full_disk_only_switches_the_copy_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, full: str
) -> None:
    log_file = tmp_path / "logs/wandb.log"
    if full == "temporary folder":
        monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    else:
        log_file.parent.write_text("a file where the folder should be")
    relay = Relay("offline", log_file)
    tracker = FolderTracker(tmp_path / "qat", RUN, relay=relay)
    tracker.log("train", 1, {"loss": 1.0})
    tracker.finish(0)
    relay.close()
    assert caplog.text.count("W&B is off: its process cannot be started") == 1
    run = read_run(tmp_path / "qat")
    assert run is not None
    assert run.status == "finished"
