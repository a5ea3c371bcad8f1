"""Send offline W&B runs with W&B's own ``wandb sync``, each with a time limit."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

MARK, PIECE = "sent-by-launcher", "piece-by-launcher"


def pending_runs(folders: Iterable[Path]) -> list[Path]:
    """Return the folders of unsent runs, the pieces of a resumed run in order.

    Args:
        folders: Searched recursively.

    Raises:
        ValueError: A folder does not exist.
    """
    found: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give a work dir, or a folder of them")
        found |= {path.parent for path in folder.rglob("wandb/*run-*/run-*.wandb")}
    return sorted((folder for folder in found if not _is_sent(folder)), key=_place)


def send(folder: Path, *, limit_s: float) -> str | None:
    """Send one run; return None, or the reason of a failure in one line.

    Args:
        folder: W&B's folder, ``.../wandb/offline-run-...``.
        limit_s: Time limit in seconds.
    """
    command = [sys.executable, "-m", "wandb", "sync", "--include-synced", "--include-online"]
    command.append(str(folder.resolve()))
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # W&B writes its log next to the run instead of into the current folder.
        env={k: v for k, v in os.environ.items() if k != "WANDB_MODE"}
        | {"WANDB_DIR": str(folder.resolve().parent.parent)},
    )
    try:
        text, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _end(process)
        return f"not sent, the server did not answer within {limit_s:g} s; try again later"
    except BaseException:
        # It has a session of its own, so that Ctrl-C does not reach it.
        _end(process)
        raise
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if _reports_failure(line)]
    if process.returncode != 0 or wrong:
        return f"not sent: {(wrong or lines or ['no reason was given'])[-1][:200]}"
    mark_sent(folder)
    return None


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process with all that it has started, and read its output to the end."""
    with contextlib.suppress(ProcessLookupError):  # It may have ended at this moment.
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def mark_sent(folder: Path) -> None:
    """Mark a run's folder as sent in its present state."""
    (folder / MARK).write_text(f"{_size(folder)} bytes\n")


def number_piece(folder: Path) -> None:
    """Write into a run's new folder how many pieces of the run exist already.

    The folder's name has the time, but a clock may have been set back since the last piece.
    """
    run = folder.name.rpartition("-")[2]
    others = [path for path in folder.parent.glob(f"*run-*-{run}") if path != folder]
    (folder / PIECE).write_text(f"{len(others)}\n")


def _reports_failure(line: str) -> bool:
    """Return whether a line of W&B's output reports an error.

    W&B always exits with 0. Paths, URLs and quoted names are ignored, because a folder may have any
    name.
    """
    words = re.sub(r"""'[^']*'|"[^"]*"|`[^`]*`|\S*[/=]\S*""", " ", line)
    return re.search(r"\b(?:errors?|fail(?:ed|ure|s)?)\b", words, re.IGNORECASE) is not None


def _is_sent(folder: Path) -> bool:
    """Return whether it was sent and has not grown since: an earlier send may be incomplete."""
    try:
        said = (folder / MARK).read_text().split()
    except OSError:
        return False
    return not said or said[0] == str(_size(folder))


def _size(folder: Path) -> int:
    total = 0
    for path in folder.glob("run-*.wandb"):
        with contextlib.suppress(FileNotFoundError):  # Removed at this moment.
            total += path.stat().st_size
    return total


def _place(folder: Path) -> tuple[str, int, str]:
    """Return a sort key that orders the pieces of a run by their start."""
    try:
        piece = int((folder / PIECE).read_text())
    except (OSError, ValueError):
        piece = 0
    return str(folder.parent), piece, folder.name.split("run-")[-1]
