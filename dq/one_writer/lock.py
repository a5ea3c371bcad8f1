"""The lock on a folder: taken, kept by a heartbeat, and released; see `dq.one_writer`."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dq.one_writer import beat
from dq.one_writer.lock_file import closed_on_error, make
from dq.one_writer.writer import Writer, all_locks, newest, read

log = logging.getLogger(__name__)
BEAT_S, SILENCE_S, LOOK_S, RETRY_S = 2.0, 60.0, 5.0, 0.05


class WritersLock:
    """The lock on a folder; see `hold`.

    Attributes:
        followed: The dead process that held it before, if any.
    """

    def __init__(self, path: Path, me: Writer, file: int, followed: Writer | None) -> None:
        self.path, self.me, self.followed = path, me, followed
        self._file = file
        self._released = threading.Event()
        # Held while the heartbeat starts or ends: none starts on a file that `release` has closed.
        self._beating = threading.Lock()
        self._beat = self._start_beat()

    def watch(self, when_lost: Callable[[str], None]) -> None:
        """Check regularly, in a thread, whether this process still holds the lock.

        A machine that was suspended for a minute may find that another process has taken over.

        Args:
            when_lost: Receives a message about it; called once, in that thread.
        """
        thread = threading.Thread(target=self._look, args=(when_lost,), name="dq-writer")
        thread.daemon = True
        thread.start()

    def is_lost(self) -> bool:
        """Whether another process holds the lock now, or the file was removed."""
        last = newest(self.path.parent)
        if last is None or last[1] != self.path:
            return True
        found = read(self.path)
        return found is not None and found[1].token != self.me.token

    def release(self) -> None:
        """Release the lock."""
        self._released.set()
        with contextlib.suppress(OSError):
            if not self.is_lost():
                self.path.unlink(missing_ok=True)
        with self._beating:
            self._end_beat()
            os.close(self._file)

    def _look(self, when_lost: Callable[[str], None]) -> None:
        while not self._released.wait(LOOK_S):
            with contextlib.suppress(OSError):
                if self.is_lost() and not self._released.is_set():
                    when_lost(
                        f"{self.path.parent} is written by another process now, because this one"
                        " gave no sign of life for too long; this process ends, so that no file is"
                        " written by both"
                    )
                    return
                with self._beating:
                    if not self._released.is_set() and self._beat.poll() is not None:
                        self._end_beat()
                        with contextlib.suppress(RuntimeError):  # It is tried again.
                            self._beat = self._start_beat()

    def _start_beat(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", beat.__file__, str(self._file), str(BEAT_S)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[self._file],
            )
        except OSError as error:
            raise RuntimeError(
                f"the process that shows that {self.path.parent} is being written cannot be started"
                f" ({error.strerror or error}): free memory, or allow more processes and open files"
            ) from error

    def _end_beat(self) -> None:
        assert self._beat.stdin is not None
        self._beat.stdin.close()
        self._beat.wait()


def hold(folder: Path, *, silence_s: float = SILENCE_S) -> WritersLock:
    """Lock a folder for writing; a missing folder is created.

    Args:
        folder: To be written by one process at a time.
        silence_s: Seconds without a heartbeat after which a process that is not visible from here
            counts as dead. Finding that out takes this long. Finding out that it lives takes one
            heartbeat.

    Raises:
        ValueError: Another process writes it, or it is not writable.
        RuntimeError: No further process can be started.
    """
    me = Writer()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            last = newest(folder)
            number, followed = 0, None
            if last is not None:
                number, path = last
                found = read(path)
                if found is None:  # Released at this moment.
                    time.sleep(RETRY_S)
                    continue
                followed = found[1]
                if not me.follows(followed) and _is_alive(path, silence_s):
                    raise ValueError(
                        f"{folder} is being written by {followed}; wait for its end, or choose"
                        " another --work-dir"
                    )
            mine = folder / f".writer.{number + 1}"
            file = make(mine, me)
            if file is None:
                continue  # Another process was faster.
            with closed_on_error(file, mine):
                latest = newest(folder)
                if latest is not None and latest[1] == mine:
                    _remove_until(number, folder)
                    if followed is not None:
                        log.info("%s was held by %s, which has died", folder, followed)
                    return WritersLock(mine, me, file, followed)
            os.close(file)
            mine.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"work dir {folder} cannot be written: {error.strerror}; choose another --work-dir"
        ) from error


def _remove_until(number: int, folder: Path) -> None:
    """Remove the locks of dead holders, those up to this number."""
    for earlier, path in all_locks(folder):
        if earlier <= number:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _is_alive(path: Path, silence_s: float) -> bool:
    """Whether a lock's holder lives; if only its count can tell, wait for the count to grow."""
    before = read(path)
    if before is None:
        return False
    alive = before[1].lives()
    if alive is not None:
        return alive
    log.info("looking for up to %.0f s whether %s still lives", silence_s, before[1])
    end = time.monotonic() + silence_s
    while time.monotonic() < end:
        time.sleep(min(0.5, silence_s / 4))
        now = read(path)
        if now is None:
            return False
        if now != before:
            return True
    return False
