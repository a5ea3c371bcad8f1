"""Handle disk errors, and write a folder completely or not at all."""

import errno
import fcntl
import logging
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dq.whole_file import FULL

log = logging.getLogger(__name__)

_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Convert disk errors inside the block to one line that names the fix.

    Raises:
        ValueError: The folder cannot be written by this user: name another one.
        RuntimeError: The disk is full or broken.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            raise RuntimeError(
                f"no space is left for {folder} ({reason}): free some, or name another folder"
            ) from error
        if error.errno in _NOT_OURS:
            raise ValueError(
                f"{folder} cannot be written ({reason}): name a folder you may write to"
            ) from error
        raise RuntimeError(
            f"the disk failed under {folder} ({reason}): repair it, or name another folder"
        ) from error


def require_space(folder: Path, num_bytes: int) -> None:
    """Check that an existing folder has space for `num_bytes` more.

    Raises:
        RuntimeError: It does not.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise RuntimeError(
            f"{folder} has {free / 1e6:.0f} MB free and needs {num_bytes / 1e6:.0f} MB: "
            "free some space, or name another folder"
        )


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a new sibling folder to write to; it is renamed to the folder when the block is done.

    If the block raises, also by an interrupt, nothing is left. An empty folder of that name is
    replaced; for any other, the rename raises an `OSError`.

    Raises:
        ValueError: It is the current folder of this process, which cannot be replaced.
    """
    final = folder.resolve()
    if final == Path.cwd():
        raise ValueError(f"{folder} is the folder you are in: name a folder inside it")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{final.name}.writing-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir()
        yield temporary
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time into the block; the others wait. A dead process does not block.

    On a file system without locks, all processes enter.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is at work in %s: waiting for it", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.info("%s has no file locks (%s): continuing without", folder, error.strerror)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
