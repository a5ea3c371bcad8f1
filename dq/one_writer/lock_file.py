"""Create the file of a lock: only one process can, also on NFS and without hard links."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from dq.one_writer import beat
from dq.one_writer.writer import Writer

_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC


def make(path: Path, me: Writer) -> int | None:
    """Create the file with its content and return it open; None if it exists already."""
    # Named like any draft, see `dq.whole_file`: leftovers of a kill are removed like those.
    draft = path.with_name(f".writer.{me.token}.tmp")
    content = b"%0*d\n" % (beat.DIGITS, 0) + json.dumps(asdict(me)).encode() + b"\n"
    file = os.open(draft, _NEW, 0o644)
    try:
        with closed_on_error(file):
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
    """Do the same as `make` on a file system without hard links."""
    try:
        file = os.open(path, _NEW, 0o644)
    except FileExistsError:
        return None
    with closed_on_error(file, path):
        _write(file, content)
    return file


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]
    os.fsync(file)


@contextlib.contextmanager
def closed_on_error(file: int, path: Path | None = None) -> Iterator[None]:
    """If the block fails, close the file, and remove the lock at its path, if one is given."""
    try:
        yield
    except BaseException:
        os.close(file)
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise
