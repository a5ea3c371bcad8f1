"""Files of rows, one JSON object per line: written immediately, read whole or sampled."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dq.whole_file import drafts

log = logging.getLogger(__name__)

Row = dict[str, Any]
METRICS, QUANTIZERS = "metrics.jsonl", "quantizers.jsonl"


class RowFile:
    """Append rows to a file; when `write` returns, the operating system has the row.

    So a killed process loses no rows, and a reader may follow the file while it grows. A disk error
    is logged once and the next row is tried again: a training must not end because its log cannot
    be written.

    Args:
        path: Appended to; created if missing.

    Raises:
        ValueError: The file cannot be written at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: one write call is one line, or a part of it on a full disk.
            self._file: BinaryIO | Any = path.open("ab", buffering=0)
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written: {error.strerror}; choose another --work-dir"
            ) from error
        self._is_cut = _ends_inside_a_line(path)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; NaN and infinities become null."""
        text = json.dumps(_plain(row), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            if self._is_cut:
                text = b"\n" + text
            written = self._file.write(text)
            self._is_cut = written != len(text)
            if self._is_cut:
                raise OSError(28, "only a part of a line could be written")
        except OSError as error:
            self.refused += 1
            if self.refused == 1:
                log.warning("%s cannot be written: %s; continuing", self.path, error.strerror)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def begin_rows(path: Path, keep: Callable[[Row], bool] | None) -> None:
    """Prepare a file of rows for a run that starts, or that resumes after some step.

    A resumed run repeats what came after its checkpoint: those rows are removed, so that the file
    stays one history. The rows of another run are kept as ``*.previous.jsonl``.

    Args:
        path: May be missing.
        keep: Returns whether a row will not be repeated; None for a run that starts.

    Raises:
        ValueError: The folder is not writable.
    """
    if not path.exists():
        return
    try:
        if keep is None:
            os.replace(path, path.with_suffix(f".previous{path.suffix}"))
            return
        with drafts(path) as (draft,), draft.open("wb") as file:
            for line in _lines(path):
                row = _parsed(line)
                if row is not None and keep(row):
                    file.write(line + b"\n")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror}; choose another --work-dir"
        ) from error


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file; skip lines cut short by a kill; a missing file has no rows."""
    for line in _lines(path):
        row = _parsed(line)
        if row is not None:
            yield row


def sample_rows(path: Path, limit: int, *, whole_below: int = 1 << 18) -> list[Row]:
    """Return about ``limit`` rows, evenly spread over the file, in order, with the last one.

    The time does not grow with the file, because rows are found by their offset in it.

    Args:
        path: A file of rows.
        limit: Largest number of rows if the file is large.
        whole_below: Files with fewer bytes are read whole.
    """
    try:
        size = path.stat().st_size
        if size < whole_below:
            rows = list(read_rows(path))
            every = max(1, math.ceil(len(rows) / limit))
            return rows[::-1][::every][::-1]
        found: dict[int, Row] = {}
        with path.open("rb") as file:
            for number in range(limit):
                file.seek(size * number // limit)
                if number:
                    file.readline()
                place = file.tell()
                row = _parsed(file.readline())
                if row is not None:
                    found[place] = row
            file.seek(max(0, size - 16384))
            tail = [r for r in map(_parsed, file.read().splitlines()[1:]) if r is not None]
            if tail:
                found[size] = tail[-1]
        return [found[place] for place in sorted(found)]
    except OSError:
        return []


class RowFollower:
    """Read the new rows of a file each time, also while another process writes it.

    Args:
        path: May be missing, and may be replaced by a resumed or a new run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place, self._file = 0, -1

    def follow(self) -> tuple[bool, list[Row]]:
        """Return whether the file is another one than before, and its rows since then.

        A line is read when it is complete.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                is_new = status.st_ino != self._file or status.st_size < self._place
                self._file, self._place = status.st_ino, 0 if is_new else self._place
                file.seek(self._place)
                whole = file.read().rpartition(b"\n")[0]
        except OSError:
            is_new, self._file, self._place = self._file != -1, -1, 0
            return is_new, []
        if not whole:
            return is_new, []
        self._place += len(whole) + 1
        rows = (_parsed(line) for line in whole.split(b"\n"))
        return is_new, [row for row in rows if row is not None]


def last_whole_row(path: Path) -> Row | None:
    """Return the last row of a file that can be read; only the end of the file is read."""
    for size in (1 << 16, 1 << 20, 1 << 24):
        try:
            with path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - size))
                lines = file.read().split(b"\n")
        except OSError:
            return None
        found = (_parsed(line) for line in reversed(lines if end <= size else lines[1:]))
        row = next((row for row in found if row is not None), None)
        if row is not None or end <= size:
            return row
    return None


def rows_of_kind(path: Path, kind: str) -> list[Row]:
    """Return all rows of one kind; other rows are not parsed."""
    mark = json.dumps({"kind": kind}, separators=(",", ":"))[1:-1].encode()
    found = (_parsed(line) for line in _lines(path) if mark in line)
    return [row for row in found if row is not None and row.get("kind") == kind]


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for line in file:
                yield line.rstrip(b"\n")
    except OSError:
        return


def _parsed(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _ends_inside_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        if file.tell() == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _plain(value: Any) -> Any:
    """Convert the value to JSON types; anything else becomes text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)
