"""`wandb sync` does not outlive the command that started it: at a limit, or at Ctrl-C."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dq.tracking.wandb_copy.send_offline import send

STARTED: list[Any] = []


class Recorded(subprocess.Popen[str]):
    """A process that is kept, and that is waited for in vain."""

    interrupt = False

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        STARTED.append(self)

    def communicate(self, input: Any = None, timeout: float | None = None) -> Any:
        if timeout is not None and Recorded.interrupt:
            raise KeyboardInterrupt
        return super().communicate(input, timeout)


@pytest.mark.parametrize("interrupt", [False, True])
def test_it_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: bool
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nsleep 300\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(subprocess, "Popen", Recorded)
    monkeypatch.setattr(Recorded, "interrupt", interrupt)
    STARTED.clear()
    if interrupt:
        with pytest.raises(KeyboardInterrupt):
            send(tmp_path / "run", limit_s=60.0)
    else:
        said = send(tmp_path / "run", limit_s=0.3)
        assert said == "not sent, the server did not answer within 0.3 s; try again later"
    (process,) = STARTED
    # The pipe ends only when `sleep`, which inherited it, has ended too.
    assert process.returncode == -9
    assert process.stdout.closed
