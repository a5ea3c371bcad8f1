"""Write a file whole or not at all, also if others write a file of the same name at that moment.

It is written under a unique temporary name in the same folder, flushed to the disk and renamed. The
leftovers of a killed process are recognized by their names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

# The disk, the user's quota or the largest file is full.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Most file systems allow 255 bytes; a draft's name is that of its file and 22 bytes more.
_LONGEST = 200
_DRAFT = re.compile(r"\..*\.[0-9a-f]{16}\.tmp", re.DOTALL)


@contextlib.contextmanager
def drafts(*paths: Path) -> Iterator[list[Path]]:
    """Give each path a temporary name in its folder; when the body is done, rename in this order.

    Until then, and if the body or the disk fails, files at these paths stay as they are and nothing
    else is left.

    Args:
        paths: In folders that exist. If the body does not write a draft, no file is created.

    Raises:
        OSError: The disk is full or refuses the write, or a path is a device or a pipe, which must
            not be replaced by a file. Its ``filename`` is one of the paths, the first if it is not
            known which one failed.
    """
    for path in paths:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))
    lent = [_draft(path) for path in paths]
    try:
        yield lent
        written = [(draft, path) for draft, path in zip(lent, paths, strict=True) if draft.exists()]
        for draft, _ in written:
            flush(draft)
        for draft, path in written:
            os.replace(draft, path)
    except OSError as error:
        _name_(error, dict(zip(lent, paths, strict=True)))
        raise
    finally:
        for draft in lent:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        _flush_folder(folder)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, or leave it as it was.

    Raises:
        OSError: The disk is full or refuses the write.
    """
    with drafts(path) as (draft,):
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def link_whole(path: Path, target: str) -> None:
    """Create or change a symbolic link; it never points to nothing in between.

    Raises:
        OSError: The disk is full or refuses the write; its ``filename`` is the path.
    """
    draft = _draft(path)
    try:
        draft.symlink_to(target)
        os.replace(draft, path)
    except OSError as error:
        _rename_(error, path)
        raise
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file's content to the disk, so that it survives a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def remove_drafts(folder: Path) -> list[Path]:
    """Remove the drafts that killed processes have left in a folder and below it; return them.

    Call it only when nobody else writes there. Links are not followed, and files that cannot be
    removed stay.
    """
    removed = []
    for place, _, names in os.walk(folder, onerror=lambda _: None):
        for name in names:
            if _DRAFT.fullmatch(name):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(place, name))
                    removed.append(Path(place, name))
    return removed


def _draft(path: Path) -> Path:
    kept = os.fsdecode(os.fsencode(path.name)[:_LONGEST])
    return path.with_name(f".{kept}.{secrets.token_hex(8)}.tmp")


def _name_(error: OSError, path_of: Mapping[Path, Path]) -> None:
    """Let an error name the file that the caller asked for, not its draft or no file at all."""
    known = {str(draft): path for draft, path in path_of.items()}
    named = str(error.filename)  # It may be a number, that of an open file.
    if path_of and (error.filename is None or named in known):
        _rename_(error, known.get(named) or next(iter(path_of.values())))


def _rename_(error: OSError, path: Path) -> None:
    """Let an error name this file alone."""
    error.filename = str(path)
    if error.filename2 is not None:
        del error.filename2  # With None in its place the text would end with "-> None".


def _flush_folder(folder: Path) -> None:
    """Flush new names to the disk; some network file systems do not support it and raise."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
