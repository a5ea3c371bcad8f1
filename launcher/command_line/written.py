"""A file that a command writes where the user wants it."""

from __future__ import annotations

from pathlib import Path

from dq.whole_file import write_whole


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all, with the folders that it needs.

    Raises:
        ValueError: It cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror}; give another file"
        ) from error
