"""The file of predictions: what was written is read again, and a damaged one is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq.tracking.pictures.predictions import (
    FILE_NAME,
    Picture,
    Predictions,
    read_predictions,
    write_predictions,
)

PICTURE = Picture(name="a.png", path="/a.png", truth=[[0, 0, 9, 9, 0]], found=[])


@pytest.mark.parametrize("place", [0, 10, -1])
def test_a_damaged_file_is_left_out(tmp_path: Path, place: int) -> None:
    written = Predictions(classes=["cat"], pictures=[PICTURE])
    path = write_predictions(tmp_path, written)
    assert read_predictions(tmp_path) == written
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF  # The header, the first block's type, the length at the end.
    (tmp_path / FILE_NAME).write_bytes(content)
    assert read_predictions(tmp_path) is None
