"""Write a file to a path that the user has given."""

from __future__ import annotations

from pathlib import Path

from dq.whole_file import write_whole

# Names of the standard streams, also where these are regular files.
_STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")


def write_text(path: Path, text: str) -> None:
    """Write a text into a file, completely or not at all; create missing folders.

    A device, a pipe or a standard stream is written in place, and a link stays one.

    Raises:
        ValueError: The file cannot be written.
    """
    try:
        if str(path).startswith(_STREAMS) or (path.exists() and not path.is_file()):
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.resolve(), text)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror}; give another file"
        ) from error
