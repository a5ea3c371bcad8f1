"""Write a file to a path that the user has given."""

from __future__ import annotations

from pathlib import Path

from dq.whole_file import write_whole


def write_text(path: Path, text: str) -> None:
    """Write a text into a file, completely or not at all; create missing folders.

    Raises:
        ValueError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror}; give another file"
        ) from error
