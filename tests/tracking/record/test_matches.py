"""A damaged file of matches is a line in the log, whatever its damage makes numpy raise."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from dq.tracking.record.matches import FILE_NAME, Matches, read_matches, write_matches


def written(folder: Path) -> Path:
    write_matches(
        folder,
        Matches(
            image=np.zeros(9, np.int32),
            label=np.zeros(9, np.int32),
            score=np.ones(9, np.float32),
            hit=np.ones((9, 10), np.bool_),
            counted=np.ones((9, 10), np.bool_),
            annotations=np.ones((2, 1), np.int32),
            names=np.array(["a", "b"]),
        ),
    )
    return folder / FILE_NAME


def without_content(path: Path) -> None:
    path.write_bytes(b"")


def with_a_wrong_block(path: Path) -> None:
    """Give the first array's compressed data a type of block that does not exist."""
    with zipfile.ZipFile(path) as archive:
        begin = archive.infolist()[0].header_offset
    content = bytearray(path.read_bytes())
    lengths = content[begin + 26 : begin + 30]
    name, extra = (int.from_bytes(lengths[k : k + 2], "little") for k in (0, 2))
    content[begin + 30 + name + extra] = 0xFF
    path.write_bytes(content)


def without_a_header(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00\x04\x00({(\n")


@pytest.mark.parametrize("damage", [without_content, with_a_wrong_block, without_a_header])
def test_a_damaged_file_is_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    path = written(tmp_path)
    assert read_matches(tmp_path) is not None
    assert callable(damage)
    damage(path)
    assert read_matches(tmp_path) is None
    assert f"{path} cannot be read: " in caplog.messages[-1]
