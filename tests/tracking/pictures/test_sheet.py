"""Drawn sheets: any size of image, any name of a class; and which boxes have a partner."""

from __future__ import annotations

import pytest
from PIL import Image

from dq.tracking.pictures.lettering import LONGEST, written
from dq.tracking.pictures.predictions import unmatched
from dq.tracking.pictures.sheet import Mark, Panel, color_of, drawn


def test_names_as_they_can_be_drawn() -> None:
    names = ["car", "Straße", "細胞", "कुत्ता", "a\nb\t\x00c", "", "   ", "x" * 60, "кот"]
    found = written(names)
    assert found[:2] == ["car", "Straße"]
    assert found[2:4] == ["#2", "#3"]
    assert found[4] == "a b c"
    assert found[5:7] == ["#5", "#6"]
    assert found[7] == "x" * (LONGEST - 1) + "…"
    assert found[8] == "кот"


@pytest.mark.parametrize("size", [(1, 1), (3, 4000), (4000, 3), (640, 480), (97, 41)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    corners = (size[0] / 4, size[1] / 4, size[0] / 2, size[1] / 2)
    marks = [
        Mark(corners=corners, label=0, text="x 0.50"),
        Mark(corners=corners, is_dashed=True),
        Mark(corners=corners, label=9, text="y", is_strong=True),
        # Outside, turned round, empty, infinite.
        Mark(corners=(-50, -50, 5000, 5000), label=1, text="z"),
        Mark(corners=(9, 9, 2, 2), label=1, text="z"),
        Mark(corners=(5, 5, 5, 5), text="z"),
        Mark(corners=(-1e30, 0, 1e30, float("inf")), text="z"),
        Mark(corners=(-1e30, -1e30, 1e30, 1e30), label=2, text="z", is_strong=True),
        Mark(corners=(-1e30, -1e30, 1e30, 1e30), is_dashed=True),
        Mark(corners=(float("nan"),) * 4, text="z"),
    ]
    panel = Panel(title="a title " * 20, image=Image.new("RGB", size), marks=marks)
    sheet = drawn([panel, panel, Panel(title="", image=None, note="no image of this\n" * 30)])
    assert sheet.width <= 3 * 420 + 16
    assert sheet.height <= 420 + 26


def test_a_box_is_where_it_belongs_though_the_image_was_reduced() -> None:
    mark = Mark(corners=(0, 0, 400, 400), label=0)
    one = drawn([Panel(title="", image=Image.new("RGB", (800, 800)), marks=[mark])], 200)
    small = Image.new("RGB", (100, 100))
    other = drawn([Panel(title="", image=small, size=(800, 800), marks=[mark])], 200)
    assert one.tobytes() == other.tobytes()
    assert one.getpixel((100, 26 + 50)) == tuple(bytes.fromhex(color_of(0)[1:]))


def test_boxes_without_a_partner() -> None:
    cat, dog = [0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.8, 1]
    assert unmatched([cat, dog], [cat, dog]) == []
    assert unmatched([cat, cat], [cat]) == [1]
    assert unmatched([cat], [dog]) == [0]
    assert unmatched([cat], [[0, 0, 10, 10, 0]]) == []
    assert unmatched([cat], [[0, 0, 10, 4.9, 0]]) == [0]
    assert unmatched([[*cat[:5], -1]], [[0, 0, 10, 10, 1]]) == []
    assert unmatched([], [cat]) == []
