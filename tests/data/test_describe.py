"""The summary of a data set: right counts, and every defect is found."""

from pathlib import Path

import pytest
from PIL import Image

from dq.data.describe import VocSummary, describe_voc, summary_text
from dq.data.layout import (
    VocBox,
    annotation_path,
    annotation_xml,
    image_path,
    read_boxes,
    read_image_set,
    write_image_set,
)

SPLITS = {"train": ["a", "b"], "val": ["c"], "trainval": ["a", "b", "c"]}


def box(name: str, *corners: int) -> VocBox:
    return VocBox(**dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)), name=name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    for image_id in SPLITS["trainval"]:
        boxes = [box("cat", 1, 1, 8, 8), box("dog", 3, 4, 5, 6)]
        write(tmp_path, image_id, boxes)
    for split, ids in SPLITS.items():
        write_image_set(tmp_path, split, ids)
    return tmp_path


def write(folder: Path, image_id: str, boxes: list[VocBox]) -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    noise.save(image_path(folder, image_id), quality=95)
    xml = annotation_xml(image_id, (64, 64), boxes, database="test", source="noise")
    annotation_path(folder, image_id).write_bytes(xml)


def test_counts_are_right_and_no_image_counts_twice(folder: Path) -> None:
    summary = describe_voc(folder)
    assert summary == VocSummary(
        folder=folder,
        num_images={"train": 2, "val": 1, "trainval": 3},
        num_boxes=6,
        num_boxes_per_class={"cat": 3, "dog": 3},
        num_zero_size_boxes=0,
        num_bad_images=0,
        num_bad_annotations=0,
    )
    assert summary.is_sound


def test_boxes_of_zero_size_are_counted_as_mmdet_measures_them(folder: Path) -> None:
    write(folder, "c", [box("cat", 5, 1, 5, 9), box("cat", 1, 9, 5, 8), box("cat", 1, 1, 2, 2)])
    assert describe_voc(folder).num_zero_size_boxes == 2


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other"])
def test_bad_images_are_counted(folder: Path, damage: str) -> None:
    path = image_path(folder, "b")
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        cut = {"empty": b"", "cut": content[: len(content) * 2 // 3], "other": b"GIF89a"}
        path.write_bytes(cut[damage])
    summary = describe_voc(folder)
    assert (summary.num_bad_images, summary.num_bad_annotations) == (1, 0)
    assert not summary.is_sound


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "<annotation><object>",
        "<annotation><object><name>cat</name></object></annotation>",
        "<annotation><object><bndbox/></object></annotation>",
        "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>inf</xmax>"
        "<ymax>2</ymax></bndbox></object></annotation>",
    ],
)
def test_bad_annotations_are_counted(folder: Path, text: str | None) -> None:
    path = annotation_path(folder, "b")
    path.unlink()
    if text is not None:
        path.write_text(text)
    summary = describe_voc(folder)
    assert (summary.num_bad_images, summary.num_bad_annotations) == (0, 1)
    assert summary.num_boxes == 4


def test_fractions_are_truncated_as_in_mmdet(folder: Path) -> None:
    path = annotation_path(folder, "a")
    path.write_text(path.read_text().replace("<xmax>8</xmax>", "<xmax>8.9</xmax>"))
    assert read_boxes(path)[0] == box("cat", 1, 1, 8, 8)


def test_a_folder_without_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name the folder that holds ImageSets"):
        describe_voc(tmp_path / "VOCdevkit")
    assert read_image_set(tmp_path, "train") is None


def test_the_text_warns_only_of_what_is_wrong(folder: Path) -> None:
    lines = summary_text(describe_voc(folder)).splitlines()
    assert lines == [
        str(folder),
        "  images  train 2, val 1, trainval 3",
        "  boxes   6 (cat 3, dog 3)",
    ]
    image_path(folder, "a").unlink()
    assert summary_text(describe_voc(folder)).splitlines()[-1] == (
        "  WRONG   1 image and 0 annotations missing or unreadable, 0 boxes of zero size"
    )
