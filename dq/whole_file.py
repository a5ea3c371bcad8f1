"""A file that is written whole or not at all, whoever else writes one of its name at that moment.

It is written under a name that nobody else has, beside its place, flushed to the disk and renamed.
What a killed process has left of such names is told apart from all other files by its name.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

# A name may have 255 bytes on most file systems; those of a draft are its file's and 22 more.
_LONGEST = 200
_DRAFT = re.compile(r"\..*\.[0-9a-f]{16}\.tmp", re.DOTALL)


@contextlib.contextmanager
def drafts(*paths: Path) -> Iterator[list[Path]]:
    """Lend a new name beside each path; in order they take the paths' names when the body is done.

    Until then, and when the body or the disk fails, files of these names stay as they are, and
    nothing else is left.

    Args:
        paths: In folders that exist. A draft that the body does not write becomes no file.

    Raises:
        OSError: The disk refuses.
    """
    lent = [_draft(path) for path in paths]
    try:
        yield lent
        written = [(draft, path) for draft, path in zip(lent, paths, strict=True) if draft.exists()]
        for draft, _ in written:
            flush(draft)
        for draft, path in written:
            os.replace(draft, path)
    finally:
        for draft in lent:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        _flush_folder(folder)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, or leave it as it was.

    Raises:
        OSError: The disk refuses.
    """
    with drafts(path) as (draft,):
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def link_whole(path: Path, target: str) -> None:
    """Make a symbolic link, or let one that is there point elsewhere, at no moment to nothing.

    Raises:
        OSError: The disk refuses.
    """
    draft = _draft(path)
    try:
        draft.symlink_to(target)
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Make a file's content survive a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def remove_drafts(folder: Path) -> list[Path]:
    """Remove what killed processes have left of drafts in a folder and below it; return them.

    To be called by whoever is sure that nobody writes there. Links are not followed, and what
    cannot be removed stays.
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


def _flush_folder(folder: Path) -> None:
    """Make new names survive a power cut; some network file systems cannot, and say so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
