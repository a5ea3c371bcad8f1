"""Run the commands of the set-up, and say how far they are."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Seconds between two lines of progress where the output is no terminal.
LINE_S = 20.0
BAR_WIDTH = 30
# ninja's mark of a finished step.
STEP = re.compile(r"\[(\d+)/(\d+)\]")


class SetupError(Exception):
    """What is wrong with this machine and how to fix it, in one line."""


def say(text: str) -> None:
    """Print one line of progress with the time of day."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def require_space(folder: Path, gib: float, purpose: str) -> None:
    """Raise unless ``folder``'s disk has ``gib`` GiB free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if free < gib:
        raise SetupError(
            f"{purpose} needs {gib:.0f} GiB on the disk of {folder}, which has {free:.1f} GiB free;"
            " free some space or choose another place (VENV=..., XDG_CACHE_HOME=..., TMPDIR=...)"
        )


class Progress:
    """Says how many files are compiled and how long the rest will take.

    A bar where the output is a terminal, else a line from time to time.
    """

    def __init__(self) -> None:
        self.began: float | None = None
        self.first = 0
        self.shown = 0.0
        self.bar = sys.stdout.isatty()

    def show(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` files are compiled."""
        now = time.monotonic()
        if self.began is None:
            # The first file may wait for the headers; the rate is that of the files after it.
            self.began, self.first = now, done
        ended = done == total
        text = f"compiled {done} of {total} files{self._rest(done, total, now)}"
        if self.bar:
            filled = BAR_WIDTH * done // total
            line = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {text}"
            print(f"\r{line:<78}", end="\n" if ended else "", flush=True)
        elif ended or now - self.shown > LINE_S:
            self.shown = now
            say(f"  {text}")

    def _rest(self, done: int, total: int, now: float) -> str:
        assert self.began is not None
        if done in (self.first, total):
            return ""
        seconds = (now - self.began) / (done - self.first) * (total - done)
        return f", {seconds / 60:.0f} min left" if seconds > 90 else f", {seconds:.0f} s left"


def run(command: Sequence[str | Path], *, log: Path, env: dict[str, str] | None = None) -> None:
    """Run a command with its output in ``log``; raise with the log's end if it fails.

    Lines such as ``[12/73]`` of ninja and pip's ``Downloading`` are shown as progress.
    """
    with log.open("a", encoding="utf-8", errors="replace") as sink:
        sink.write("$ " + " ".join(map(str, command)) + "\n")
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        progress, shown = Progress(), 0.0
        for line in process.stdout:
            sink.write(line)
            if step := STEP.search(line):
                progress.show(int(step[1]), int(step[2]))
            elif re.match(r"\s*Downloading \S+", line) and time.monotonic() - shown > 5:
                shown = time.monotonic()
                say("  " + line.strip()[:100])
    if process.wait():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise SetupError(
            f"this command failed: {' '.join(map(str, command))}\n{tail}\nfull log: {log}"
        )
