"""The index of submissions in the user's home: a file for each chain, with its folder in it.

Two submissions at the same moment write different files, so neither needs to wait for a lock, which
not every shared home folder has.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from dq.whole_file import write_whole

# The oldest entries beyond this number are removed.
KEPT = 500


def index_folder() -> Path:
    """Return the index: ``$XDG_STATE_HOME/dq-launcher/chains.d``.

    Raises:
        RuntimeError: The user has no home folder.
    """
    state = os.environ.get("XDG_STATE_HOME")
    try:
        home = Path(state) if state else Path.home() / ".local/state"
    except RuntimeError as error:
        raise RuntimeError(
            f"user {os.getuid()} has no home folder for the list of submissions; set HOME or"
            " XDG_STATE_HOME to a folder"
        ) from error
    return home / "dq-launcher/chains.d"


def add_to_index(folder: str) -> None:
    """Add a chain's folder to the index, unless it is there already.

    Raises:
        OSError: The index cannot be written.
        RuntimeError: The user has no home folder.
    """
    index = index_folder()
    entry = index / hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
    if entry.exists():
        return
    index.mkdir(parents=True, exist_ok=True)
    write_whole(entry, f"{folder}\n")
    for old in _entries(index)[:-KEPT]:
        old.unlink(missing_ok=True)


def indexed_folders() -> list[str]:
    """Return the folders of all chains, oldest first.

    Raises:
        RuntimeError: The user has no home folder.
    """
    index = index_folder()
    # Earlier versions had one file, with a line for each chain.
    files = [index.with_name("chains"), *_entries(index)]
    found: dict[str, None] = {}
    for path in files:
        with contextlib.suppress(OSError):
            found |= dict.fromkeys(line for line in path.read_text().splitlines() if line)
    return list(found)


def _entries(index: Path) -> list[Path]:
    """Return the files of the index, oldest first; those that others are writing are left out."""
    ages = {}
    with contextlib.suppress(OSError):
        for path in index.iterdir():
            # Another submission may remove an old one at this moment.
            with contextlib.suppress(OSError):
                if not path.name.startswith("."):
                    ages[path] = path.stat().st_mtime_ns
    return sorted(ages, key=lambda path: (ages[path], path.name))
