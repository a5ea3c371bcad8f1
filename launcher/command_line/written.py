"""A file that a command writes where the user wants it."""

from __future__ import annotations

from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text, with the folders that it needs.

    Raises:
        ValueError: It cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror}; give another file"
        ) from error
