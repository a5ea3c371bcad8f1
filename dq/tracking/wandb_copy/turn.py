"""A lock, so that one relay at a time copies a run: that of a resumed training waits its turn."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import IO

LOCK = "wandb/lock"
TRY_EVERY_S = 0.2


def take_turn(folder: Path, limit_s: float) -> IO[bytes] | None:
    """Return an open file that holds the lock until it is closed or the process ends.

    Args:
        folder: Folder of the run.
        limit_s: Longest time to wait for the lock, in seconds.

    Returns:
        None if the lock was not acquired: after the limit, or if files cannot be locked.
    """
    end = time.monotonic() + limit_s
    try:
        (folder / LOCK).parent.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("ab")
    except OSError:
        return None
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > end:
                break
            time.sleep(TRY_EVERY_S)
        except OSError:
            break
    file.close()
    return None
