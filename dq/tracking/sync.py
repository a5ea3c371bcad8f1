"""Send W&B runs that lie on the disk, by W&B's own ``wandb sync``, each within a limit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

MARK = "sent-by-launcher"


def pending_runs(folders: Iterable[Path]) -> list[Path]:
    """Return the folders of runs that were not sent yet, pieces of a resumed run in order.

    Args:
        folders: Searched with all that is below.

    Raises:
        ValueError: A folder does not exist.
    """
    found: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; give a work dir, or a folder that has some")
        found |= {path.parent for path in folder.rglob("wandb/*run-*/run-*.wandb")}
    # The names hold the time; a mark that is older than the data was of an earlier try.
    return sorted((f for f in found if not _is_sent(f)), key=lambda f: f.name.split("run-")[-1])


def send(folder: Path, *, limit_s: float) -> str | None:
    """Send one run; return None, or in one line why it could not be.

    Args:
        folder: Of W&B, ``.../wandb/offline-run-...``.
        limit_s: Seconds after which it is given up.
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
        # Its own log goes beside the run instead of into the folder that the user is in.
        env={k: v for k, v in os.environ.items() if k != "WANDB_MODE"}
        | {"WANDB_DIR": str(folder.resolve().parent.parent)},
    )
    try:
        text, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"not sent, the server did not answer within {limit_s:g} s; try again later"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if _tells_of_failure(line)]
    if process.returncode != 0 or wrong:
        return f"not sent: {(wrong or lines or ['no reason was given'])[-1][:200]}"
    (folder / MARK).touch()
    return None


def _tells_of_failure(line: str) -> bool:
    """Say whether a line of W&B's tells that something went wrong.

    It ends with 0 whatever happened. Paths, addresses and quoted names are left out: a folder may
    be called as it likes.
    """
    words = re.sub(r"""'[^']*'|"[^"]*"|`[^`]*`|\S*[/=]\S*""", " ", line)
    return re.search(r"\b(?:errors?|fail(?:ed|ure|s)?)\b", words, re.IGNORECASE) is not None


def _is_sent(folder: Path) -> bool:
    data = max((p.stat().st_mtime for p in folder.glob("run-*.wandb")), default=0.0)
    mark = folder / MARK
    return mark.is_file() and mark.stat().st_mtime >= data
