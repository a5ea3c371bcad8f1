"""Write files to paths that the user has given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dq.whole_file import write_whole

# Names of the standard streams, also where these are regular files.
_STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")


def check_outputs(outputs: Mapping[str, Path | None], inputs: Sequence[Path] = ()) -> None:
    """Check before any work that no file would be replaced by another of the same command.

    Args:
        outputs: By option; None for one that was not given. Several may be one device or stream.
        inputs: Files that the command reads.

    Raises:
        ValueError: Two outputs are one file, or one is an input.
    """
    taken = {path.resolve(): "" for path in inputs}
    for option, path in outputs.items():
        if path is None or _is_stream(path):
            continue
        place = path.resolve()
        if place in taken:
            before = taken[place]
            also = f"of {before} too" if before else "that the command reads"
            raise ValueError(f"{option} {path} is the file {also}; give another file")
        taken[place] = option


def _is_stream(path: Path) -> bool:
    return str(path).startswith(_STREAMS) or (path.exists() and not path.is_file())


def write_text(path: Path, text: str) -> None:
    """Write a text into a file, completely or not at all; create missing folders.

    A device, a pipe or a standard stream is written in place, and a link stays one.

    Raises:
        ValueError: The file cannot be written.
    """
    try:
        if _is_stream(path):
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.resolve(), text)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror}; give another file"
        ) from error
