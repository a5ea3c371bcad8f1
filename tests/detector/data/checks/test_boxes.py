"""Boxes and image sizes: photos rotated by a tag, wrong sizes, boxes outside."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmcv import Config
from PIL import Image

from dq.data.pictures import head_size
from dq.detector.data.checks.boxes import WithoutUselessBoxes
from dq.detector.data.checks.image_size import loaded_size, loader_of
from dq.detector.data.datasets import dataset_of

WIDTH, HEIGHT = 120, 80
LOADING: list[dict[str, Any]] = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True},
]


def photo(path: Path, *, turned: bool = False) -> None:
    """Write a landscape photo; if ``turned``, with the EXIF tag that rotates it to portrait."""
    image = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 99, np.uint8))
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    image.save(path, exif=exif)


def coco(
    folder: Path,
    boxes: list[list[float]],
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    loading: dict[str, Any] | None = None,
    **more: Any,
) -> Config:
    """Return a config of a COCO set: the first image is valid, the second has these boxes."""
    photo(folder / "sound.jpg")
    content = {
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "images": [
            {"id": 1, "file_name": "sound.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 2, "file_name": "photo.jpg", "width": size[0], "height": size[1]},
        ],
        "annotations": [
            {"id": n, "image_id": 2 if n else 1, "category_id": 7, "bbox": box, "iscrowd": 0,
             "area": box[2] * box[3]}
            for n, box in enumerate([[5.0, 5.0, 20.0, 20.0], *boxes])
        ],
    }  # fmt: skip
    (folder / "list.json").write_text(json.dumps(content))
    steps = [{**LOADING[0], **(loading or {})}, LOADING[1]]
    section = {
        "type": "CocoDataset", "classes": ("cat", "dog"), "ann_file": str(folder / "list.json"),
        "img_prefix": str(folder), "pipeline": steps, **more,
    }  # fmt: skip
    return Config({"data": {"train": section, "test": section}})


RIGHT = [90.0, 10.0, 25.0, 40.0]  # In the landscape photo; the portrait one is only 80 wide.


def test_boxes_of_a_photo_rotated_by_its_tag_are_found_and_named(tmp_path: Path) -> None:
    config = coco(tmp_path, [RIGHT])
    photo(tmp_path / "photo.jpg", turned=True)
    with pytest.raises(ValueError, match="rotated by its EXIF tag") as error:
        dataset_of(config, "train")
    text = str(error.value)
    assert f"1 of 1 box of image {tmp_path / 'photo.jpg'} lie outside it, which is 80x" in text
    assert "120x80 by its annotation" in text
    assert "color_type='color_ignore_orientation'" in text
    # The suggested fix works.
    fixed = coco(tmp_path, [RIGHT], loading={"color_type": "color_ignore_orientation"})
    assert len(dataset_of(fixed, "train")) == 2


def test_boxes_of_a_photo_that_is_not_rotated_are_found(tmp_path: Path) -> None:
    upright = [10.0, 90.0, 40.0, 25.0]
    unturned = {"color_type": "unchanged"}
    config = coco(tmp_path, [upright], size=(HEIGHT, WIDTH), loading=unturned)
    photo(tmp_path / "photo.jpg", turned=True)
    with pytest.raises(ValueError, match=r"not rotated by its EXIF tag.*color_type='color'"):
        dataset_of(config, "train")
    assert len(dataset_of(coco(tmp_path, [upright], size=(HEIGHT, WIDTH)), "train")) == 2


@pytest.mark.parametrize(
    ("size", "box", "said"),
    [
        # Boxes of the photo before it was resized.
        ((240, 160), [150.0, 100.0, 80.0, 50.0], "lie outside it, which is 120x80 as it is read"),
        # mmdet drops such boxes silently.
        ((60, 40), RIGHT, "lie outside the 60x40 that its annotation says"),
    ],
)
def test_a_wrong_size_is_named_with_its_file(
    tmp_path: Path, size: tuple[int, int], box: list[float], said: str
) -> None:
    config = coco(tmp_path, [[1.0, 1.0, 9.0, 9.0], box], size=size)
    photo(tmp_path / "photo.jpg")
    fix = r"; correct the width, height and boxes of this image in .*list\.json"
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=rf"1 of 2 boxes of image .*photo\.jpg {said}.*{fix}"):
            dataset_of(config, split, test_mode=split == "test")


def test_a_wrong_size_that_loses_no_box_is_accepted_for_pascal_voc(tmp_path: Path) -> None:
    config = voc(tmp_path, [[91, 11, 116, 51]])
    path = tmp_path / "Annotations/a.xml"
    path.write_text(path.read_text().replace("width>120", "width>80"))
    assert len(dataset_of(config, "train").get_ann_info(0)["bboxes"]) == 1


def test_another_size_that_boxes_fit_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = coco(tmp_path, [[1.0, 1.0, 9.0, 9.0]], size=(121, 80))
    photo(tmp_path / "photo.jpg")
    with caplog.at_level(logging.WARNING):
        assert len(dataset_of(config, "train")) == 2
    assert caplog.text.count("1 image has another size than") == 1


def voc(folder: Path, boxes: list[list[int]], **more: Any) -> Config:
    """Return a config of one VOC image with these corners; a fifth number makes a box special."""
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(exist_ok=True)
    photo(folder / "JPEGImages/a.jpg")
    objects = "".join(
        f"<object><name>{'eleven' if box[4:] else 'cat'}</name><bndbox><xmin>{box[0]}</xmin>"
        f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for box in boxes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    (folder / "Annotations/a.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (folder / "list.txt").write_text("a\n")
    section = {
        "type": "VOCFolderDataset", "classes": ("cat",), "ann_file": str(folder / "list.txt"),
        "img_prefix": str(folder), "pipeline": LOADING, **more,
    }  # fmt: skip
    return Config({"data": {"train": section, "test": section}})


def test_boxes_outside_the_image_are_dropped_in_training_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside, across, outside = [11, 11, 31, 31], [101, 11, 151, 31], [131, 11, 151, 31]
    config = voc(tmp_path, [inside, outside, across, [5, 5, 5, 9]])
    with caplog.at_level(logging.WARNING):
        found = dataset_of(config, "train").get_ann_info(0)
    assert found["bboxes"].tolist() == [[10, 10, 30, 30], [100, 10, 150, 30]]
    assert len(found["labels"]) == 2
    assert "1 box outside its image in 1 image, left out (first JPEGImages/a.jpg" in (caplog.text)
    assert "1 box without area in 1 image, left out" in caplog.text
    # In mmdet's metric they count as not found.
    caplog.clear()
    config.data.test.pipeline = LOADING[:1]
    with caplog.at_level(logging.WARNING):
        tested = dataset_of(config, "test", test_mode=True).get_ann_info(0)
    assert len(tested["bboxes"]) == 3
    assert "where nothing can find them" in caplog.text


def test_boxes_of_other_classes_are_dropped_counted_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = [11, 11, 31, 31]
    config = voc(tmp_path, [box, [*box, 1], [*box, 1]])
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of(config, "train")
    assert len(dataset.get_ann_info(0)["bboxes"]) == 1
    assert caplog.text.count("2 boxes of 1 other class in") == 1
    assert "(eleven 2)" in caplog.text
    none = voc(tmp_path, [[*box, 1]], filter_empty_gt=False)
    with pytest.raises(ValueError, match=r"none of the classes \('cat',\) occurs .* eleven 1"):
        dataset_of(none, "train")


def test_entries_of_a_dropped_box_are_dropped_too() -> None:
    annotation = {
        "bboxes": np.array([[0, 0, 4, 4], [2, 2, 2, 6], [9, 9, 12, 12]], np.float32),
        "labels": np.array([0, 1, 2]), "masks": ["a", "b", "c"], "seg_map": "abc",
        "bboxes_ignore": np.array([[3, 3, 3, 3]], np.float32),
    }  # fmt: skip
    found = WithoutUselessBoxes(lambda index: annotation, {0: (8, 8)})(0)
    assert found["labels"].tolist() == [0]
    assert found["masks"] == ["a"]
    assert found["seg_map"] == "abc"
    assert found["bboxes_ignore"].shape == (0, 4)
    assert WithoutUselessBoxes(lambda index: annotation, {})(0)["masks"] == ["a", "c"]


def test_labels_without_a_class_are_named(tmp_path: Path) -> None:
    import pickle

    photo(tmp_path / "a.jpg")
    ann = {"bboxes": np.array([[1, 1, 9, 9]], np.float32), "labels": np.array([2])}
    infos = [{"filename": "a.jpg", "width": WIDTH, "height": HEIGHT, "ann": ann}]
    (tmp_path / "list.pkl").write_bytes(pickle.dumps(infos))
    section = {
        "type": "CustomDataset", "classes": ("cat", "dog"), "ann_file": str(tmp_path / "list.pkl"),
        "img_prefix": str(tmp_path), "pipeline": LOADING,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"a\.jpg has a box of label 2 .* go from 0 to 1"):
        dataset_of(Config({"data": {"train": section}}), "train")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("color_type", ["color", "grayscale", "unchanged"])
def test_the_header_gives_the_size_of_the_loaded_image(
    tmp_path: Path, turned: bool, color_type: str
) -> None:
    config = coco(tmp_path, [[1.0, 1.0, 9.0, 9.0]], loading={"color_type": color_type})
    photo(tmp_path / "photo.jpg", turned=turned)
    step = loader_of(dataset_of(config, "train"))
    size = loaded_size(str(tmp_path / "photo.jpg"), step)
    assert head_size(str(tmp_path / "photo.jpg"), turned=color_type != "unchanged") == size
    assert size == ((HEIGHT, WIDTH) if turned and color_type != "unchanged" else (WIDTH, HEIGHT))
