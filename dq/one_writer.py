"""One process at a time writes a folder. A dead holder (kill -9, power loss) blocks nobody.

The holder has a file ``.writer.N`` in the folder. It says who the holder is, and a helper process
writes a growing count into it (`dq.beat`). If the holder's process is visible from here, `/proc`
shows whether it lives. Otherwise the count decides: it must grow, measured with the reader's own
clock. Clocks of two machines are never compared. The file system only needs hard links that fail if
the name exists (`os.link`), which NFS has. A dead holder is replaced by the process that creates
the file with the next number; only one process can.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dq import beat
from dq.proc import began_of
from dq.tracking.record.liveness import this_process

log = logging.getLogger(__name__)
BEAT_S, SILENCE_S, LOOK_S, RETRY_S = 2.0, 60.0, 5.0, 0.05
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
_NAME = re.compile(r"\.writer\.([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """The process that writes a folder.

    Attributes:
        token: Different for every writer.
        process: From `dq.tracking.record.liveness.this_process`.
        since: Start of writing, to show to people: seconds since 1970 by its own clock.
        job: Number of a Slurm job, empty if there is none.
        attempt: How often that job had been started before.
    """

    token: str = field(default_factory=lambda: secrets.token_hex(8))
    process: Mapping[str, Any] = field(default_factory=this_process)
    since: float = field(default_factory=time.time)
    job: str = field(default_factory=lambda: os.environ.get("SLURM_JOB_ID", ""))
    attempt: int = field(default_factory=lambda: int(os.environ.get("SLURM_RESTART_COUNT") or 0))

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.process.get('pid')} on {self.process.get('host')} since {began}"

    def follows(self, other: Writer) -> bool:
        """Whether this is the same Slurm job, requeued after the other."""
        return bool(self.job) and self.job == other.job and self.attempt > other.attempt

    def lives(self) -> bool | None:
        """Whether the process lives; None if it is not visible from here."""
        here = this_process()
        if not here["boot"] or any(self.process.get(k) != here[k] for k in ("boot", "space")):
            return None
        began = began_of(int(self.process.get("pid") or 0))
        return began is not None and began == self.process.get("began")


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
        newest = _newest(self.path.parent)
        if newest is None or newest[1] != self.path:
            return True
        found = _read(self.path)
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
            newest = _newest(folder)
            number, followed = 0, None
            if newest is not None:
                number, path = newest
                found = _read(path)
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
            file = _make(mine, me)
            if file is None:
                continue  # Another process was faster.
            with _closed_on_error(file, mine):
                latest = _newest(folder)
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
    for earlier, path in _all(folder):
        if earlier <= number:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def writer_of(folder: Path) -> Writer | None:
    """Return who holds a folder's lock, alive or dead; None if nobody does, or it is unreadable.

    Nothing is written.
    """
    try:
        newest = _newest(folder)
        found = None if newest is None else _read(newest[1])
    except OSError:
        return None
    return None if found is None else found[1]


def _make(path: Path, me: Writer) -> int | None:
    """Create the file with its content and return it open; None if it exists already."""
    # Named like any draft, see `dq.whole_file`: leftovers of a kill are removed like those.
    draft = path.with_name(f".writer.{me.token}.tmp")
    content = b"%0*d\n" % (beat.DIGITS, 0) + json.dumps(asdict(me)).encode() + b"\n"
    file = os.open(draft, _NEW, 0o644)
    try:
        with _closed_on_error(file):
            _write(file, content)
            # An NFS server's answer may be lost and the retry refused: the link count decides.
            if _links(draft, path) or os.fstat(file).st_nlink == 2:
                return file
        os.close(file)
        return None if path.exists() else _make_without_links(path, content)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _links(draft: Path, path: Path) -> bool:
    """Give the file a second name, and return whether the answer says that it worked."""
    try:
        os.link(draft, path)
    except OSError:
        return False
    return True


def _make_without_links(path: Path, content: bytes) -> int | None:
    """Do the same as `_make` on a file system without hard links."""
    try:
        file = os.open(path, _NEW, 0o644)
    except FileExistsError:
        return None
    with _closed_on_error(file, path):
        _write(file, content)
    return file


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]
    os.fsync(file)


@contextlib.contextmanager
def _closed_on_error(file: int, path: Path | None = None) -> Iterator[None]:
    """If the block fails, close the file, and remove the lock at its path, if one is given."""
    try:
        yield
    except BaseException:
        os.close(file)
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise


def _all(folder: Path) -> list[tuple[int, Path]]:
    found = [(_NAME.fullmatch(entry.name), folder / entry.name) for entry in os.scandir(folder)]
    return sorted((int(match[1]), path) for match, path in found if match)


def _newest(folder: Path) -> tuple[int, Path] | None:
    found = _all(folder)
    return found[-1] if found else None


def _read(path: Path) -> tuple[bytes, Writer] | None:
    """Return a lock's count and its holder; None if the file is gone.

    A file with damaged content counts as held by an unknown process.
    """
    try:
        count, _, text = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    try:
        return count, Writer(**json.loads(text))
    except (ValueError, TypeError):
        return count, Writer(token="", process={}, since=0.0, job="", attempt=0)


def _is_alive(path: Path, silence_s: float) -> bool:
    """Whether a lock's holder lives; if only its count can tell, wait for the count to grow."""
    before = _read(path)
    if before is None:
        return False
    alive = before[1].lives()
    if alive is not None:
        return alive
    log.info("looking for up to %.0f s whether %s still lives", silence_s, before[1])
    end = time.monotonic() + silence_s
    while time.monotonic() < end:
        time.sleep(min(0.5, silence_s / 4))
        now = _read(path)
        if now is None:
            return False
        if now != before:
            return True
    return False
