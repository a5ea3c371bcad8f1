"""Numbers about boxes: the fitted input size and the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dq.data.formats.labelled import Box, Photo
from dq.data.own.splits import Splits
from dq.data.own.statistics import Scaling, box_shapes, checked_size, fitted_size, table


def photo(*boxes: tuple[str, float, float], size: tuple[int, int] = (640, 480)) -> Photo:
    found = tuple(Box(name=n, corners=(0.0, 0.0, w, h)) for n, w, h in boxes)
    return Photo(file=Path("a.jpg"), boxes=found, size=size)


@pytest.mark.parametrize(
    ("length", "size", "side"),
    [(100, (640, 480), 160), (25, (640, 480), 320), (5, (640, 480), 640), (5, (300, 200), 288)],
)
def test_small_boxes_need_a_large_input(length: int, size: tuple[int, int], side: int) -> None:
    assert fitted_size([photo(("a", length, length), size=size)]) == side


def test_a_given_size_is_checked() -> None:
    assert checked_size(96) == 96
    for size, near in ((100, 96), (30, 64), (-5, 64), (5000, 4096), (111, 96)):
        with pytest.raises(ValueError, match=f"--size {size} is not .*; use {near}$"):
            checked_size(size)


def test_boxes_are_measured_at_the_input() -> None:
    one = [photo(("a", 64, 48))]
    np.testing.assert_allclose(box_shapes(one), [[64, 48]])
    stretched = Scaling(size=(320, 320), keeps_ratio=False)
    np.testing.assert_allclose(box_shapes(one, stretched), [[32, 32]])
    padded = Scaling(size=(320, 320), keeps_ratio=True)
    np.testing.assert_allclose(box_shapes(one, padded), [[32, 24]])


def test_the_table_has_classes_splits_and_sizes() -> None:
    photos = {
        "train": (photo(("cat", 40, 40), ("a dog", 80, 20)), photo(("cat", 60, 60))),
        "val": (photo(("cat", 50, 50)), photo()),
    }
    splits = Splits(photos=photos, said="")
    lines = table(splits, ("cat", "a dog", "none"), Scaling(size=(320, 240), keeps_ratio=True))
    assert [line.split() for line in lines] == [
        ["class", "train", "val", "width", "x", "height", "at", "320x240"],
        ["cat", "2", "1", "50", "x", "50", "21", "-", "25", "-", "29"],
        ["a", "dog", "1", "0", "80", "x", "20", "20", "-", "20", "-", "20"],
        ["none", "0", "0", "-", "-"],
        ["all", "3", "3", "1", "55", "x", "45", "20", "-", "22", "-", "28"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_many_classes_make_a_short_table() -> None:
    photos = (photo(*((f"c{n}", 9, 9) for n in range(50))), photo(("c49", 9, 9)))
    names = [f"c{n}" for n in range(50)]
    splits = Splits(photos={"train": photos}, said="")
    lines = table(splits, names, Scaling(size=(96, 96), keeps_ratio=False))
    assert len(lines) == 22
    assert lines[1].startswith("c49 ")
