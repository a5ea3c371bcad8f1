"""The training's side of the relay: start and end runs, and wait for the relay with a limit.

Nothing here waits while a training runs: commands are a few short lines, rows are read from files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dq.tracking.wandb_copy.mirror import Limits
from dq.tracking.wandb_copy.relay import SCRATCH, children
from dq.tracking.wandb_copy.variables import IGNORED

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[3]


class Relay:
    """A process that copies runs to W&B; it starts with the first run.

    Args:
        mode: ``online`` or ``offline``.
        log_file: Receives what W&B prints.
        limits: Time limits for W&B.
    """

    def __init__(self, mode: str, log_file: Path, limits: Limits | None = None) -> None:
        self.mode, self.log_file, self.limits = mode, log_file, limits or Limits()
        self.process: subprocess.Popen[bytes] | None = None
        self.rest = b""
        self.scratch: str | None = None
        self.is_gone = False

    def begin(self, folder: Path) -> None:
        """Copy the run of this folder from now on."""
        if self.process is None:
            self._start()
        self._order(
            do="begin",
            folder=str(folder.resolve()),
            mode=self.mode,
            init_s=self.limits.init_s,
            finish_s=self.limits.finish_s,
        )

    def end(self, folder: Path, exit_code: int) -> None:
        """End the run of this folder; returns immediately."""
        self._order(do="end", folder=str(folder.resolve()), exit_code=exit_code)

    def listen(self) -> list[str]:
        """Log the relay's messages and return them; returns immediately."""
        if self.process is None or self.process.stdout is None:
            return []
        with contextlib.suppress(OSError):
            while piece := os.read(self.process.stdout.fileno(), 65536):
                self.rest += piece
        *lines, self.rest = self.rest.split(b"\n")
        said = [line.decode(errors="replace") for line in lines]
        for line in said:
            if line != "done":
                log.warning("%s", line)
        return said

    def close(self, hurry_s: float | None = None) -> None:
        """Let the relay send the rest within the limit, and end it.

        Args:
            hurry_s: After this many seconds the relay is left running instead. It reads files,
                does not need this process any more, and ends by its own limits.
        """
        process = self.process
        if process is None:
            return
        self.process = None
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        limit_s = self.limits.finish_s + 5.0
        try:
            process.wait(limit_s if hurry_s is None else min(hurry_s, limit_s))
        except subprocess.TimeoutExpired:
            if hurry_s is None:
                log.warning("W&B did not finish in time; `launcher sync` sends the rest")
                _kill(process)
            else:
                log.info("W&B is not done; process %d continues, log %s", process.pid,
                         self.log_file)  # fmt: skip
        except BaseException:
            # A second signal does not wait for W&B.
            _kill(process)
            self._remove_scratch()
            raise
        self.process = process
        self.listen()
        self.process = None
        assert process.stdout is not None
        process.stdout.close()
        if process.poll() is not None:
            self._remove_scratch()

    def _start(self) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        try:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            # W&B leaves its own folders in the temporary directory.
            self.scratch = tempfile.mkdtemp(prefix=SCRATCH)
            with self.log_file.open("ab") as errors:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "dq.tracking.wandb_copy.relay"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env={
                        **{k: v for k, v in os.environ.items() if k not in IGNORED},
                        "PYTHONPATH": path,
                        "TMPDIR": self.scratch,
                    },
                    start_new_session=True,
                )
        except OSError as error:
            log.warning("W&B is off: its process cannot be started (%s)", error)
            self.is_gone = True
            self._remove_scratch()
            return
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)

    def _remove_scratch(self) -> None:
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _order(self, **order: Any) -> None:
        if self.process is None or self.is_gone:
            return
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            self.is_gone = True
            log.warning("W&B is off: its process is gone; metrics.jsonl has everything")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a relay and W&B's service, which runs in its own session."""
    for pid in [*children(process.pid), process.pid]:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5.0)
