"""Images of a folder are a data set; a detector's own boxes are their truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
from mmdet.datasets import build_dataset
from PIL import Image

from dq.data.pictures import ORIENTATION
from dq.detector.data.image_folder import (
    confident_boxes,
    image_files,
    section,
    training_pipeline,
)

CLASSES = ("one", "two")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of different sizes in two folders, and a file that is none."""
    for number, name in enumerate(("b.png", "a.jpg", "sub/d.PNG", "sub/c.bmp", "e.jpeg")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + number, 30)).save(path)
    (tmp_path / "photos/notes.txt").write_text("no image")
    return tmp_path / "photos"


def result(*boxes: tuple[float, float, int]) -> list[Any]:
    """Return mmdet's result with boxes of this size, score and label."""
    rows: list[list[list[float]]] = [[], []]
    for size, score, label in boxes:
        rows[label].append([1, 2, 1 + size, 2 + size, score])
    return [np.asarray(own, dtype=np.float32).reshape(-1, 5) for own in rows]


def test_all_images_are_found_in_order(folder: Path) -> None:
    assert image_files(folder) == ["a.jpg", "b.png", "e.jpeg", "sub/c.bmp", "sub/d.PNG"]


def test_hidden_files_and_a_work_dir_inside_are_left_out(folder: Path) -> None:
    before = image_files(folder)
    for name in ("._a.jpg", ".thumbnails/a.jpg", "runs/x/drawing.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no photograph")
    assert image_files(folder, folder / "runs") == before
    dataset = build_dataset(
        section(folder, CLASSES, [], (0, 1), None) | {"without": str(folder / "runs")}
    )
    assert [info["filename"] for info in dataset.data_infos] == before
    # A folder inside the work dir, or the work dir itself, is what the user asked for.
    for work_dir in (folder, folder.parent, folder.parent / "photos2"):
        assert "a.jpg" in image_files(folder, work_dir)


def test_a_turned_photograph_has_the_size_that_is_read(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=turned)
    (info,) = build_dataset(section(tmp_path, CLASSES, [], (0, 1), None)).data_infos
    assert (info["width"], info["height"]) == (30, 40)
    assert mmcv.imread(str(tmp_path / "a.jpg")).shape[:2] == (40, 30)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        image_files(tmp_path / "none")
    with pytest.raises(ValueError, match="has no images"):
        image_files(tmp_path)


def test_a_broken_image_is_named(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\.png cannot be read .*; repair or remove it"):
        build_dataset(section(folder, CLASSES, [], (0, 1), None))


def test_an_image_with_too_many_pixels_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow refuses it with an error that is no OSError."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read .*; repair or remove it"):
        build_dataset(section(folder, CLASSES, [], (0, 1), None))


def test_parts_do_not_overlap(folder: Path) -> None:
    parts = [build_dataset(section(folder, CLASSES, [], (first, 2), None)) for first in (0, 1)]
    names = [[info["filename"] for info in part.data_infos] for part in parts]
    assert names == [["a.jpg", "e.jpeg", "sub/d.PNG"], ["b.png", "sub/c.bmp"]]
    assert parts[0].data_infos[0]["width"] == 41


def test_a_detector_agrees_with_its_own_boxes_and_another_less(
    folder: Path, tmp_path: Path
) -> None:
    dataset = build_dataset(section(folder, CLASSES, [], (0, 1), None))
    own = [result((10, 0.9, 0), (20, 0.1, 1)) for _ in range(5)]
    boxes = confident_boxes(dataset, own)
    assert boxes["a.jpg"] == [[1, 2, 11, 12, 0]], "scores below 0.3 count as nothing"
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(boxes))
    again = build_dataset(section(folder, CLASSES, [], (0, 1), path))
    assert again.evaluate(own)["bbox_mAP"] == pytest.approx(1.0)
    other = [result((8, 0.9, 0)) for _ in range(5)]
    assert 0 < again.evaluate(other)["bbox_mAP"] < 0.8
    assert again.evaluate(other, metric="mAP")["bbox_mAP"] < 0.8, "settings of other sets"


def test_a_detector_with_low_scores_is_compared_by_its_best_boxes(
    folder: Path, tmp_path: Path
) -> None:
    dataset = build_dataset(section(folder, CLASSES, [], (0, 1), None))
    # 20 boxes for each image, with scores below 0.3.
    own = [
        result(*((5 + number, 0.2 - 0.01 * number - 0.001 * image, 0) for number in range(20)))
        for image in range(5)
    ]
    boxes = confident_boxes(dataset, own)
    assert sum(len(rows) for rows in boxes.values()) == 50
    assert boxes["b.png"][0] == [1, 2, 6, 7, 0]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(boxes))
    again = build_dataset(section(folder, CLASSES, [], (0, 1), path))
    assert again.evaluate(own)["bbox_mAP"] == pytest.approx(1.0)


LOAD = {"type": "LoadImageFromFile"}
NORMALIZE = {"type": "Normalize", "mean": [0.0] * 3, "std": [1.0] * 3, "to_rgb": True}
BUNDLE = {"type": "DefaultFormatBundle"}
TO_TENSOR = {"type": "ImageToTensor", "keys": ["img"]}
COLLECT = {"type": "Collect", "keys": ["img"]}
FLIP, PAD = {"type": "RandomFlip"}, {"type": "Pad", "size_divisor": 32}


def pipeline_of(*transforms: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a test pipeline with these steps after the resize."""
    inner = [{"type": "Resize", "keep_ratio": True}, *transforms]
    views = {"type": "MultiScaleFlipAug", "img_scale": (64, 64), "flip": False}
    return [LOAD, {**views, "transforms": inner}]


@pytest.mark.parametrize(
    "pipeline",
    [
        pipeline_of(FLIP, NORMALIZE, PAD, TO_TENSOR, COLLECT),
        pipeline_of(FLIP, PAD, BUNDLE, COLLECT),
        pipeline_of(NORMALIZE, BUNDLE, COLLECT),
        pipeline_of(PAD, TO_TENSOR, COLLECT),
        [LOAD, NORMALIZE, FLIP, BUNDLE, COLLECT],
        [LOAD, FLIP, TO_TENSOR, COLLECT],
    ],
    ids=["usual", "YOLOX", "without flip", "without norm", "one view", "bare"],
)
def test_a_test_pipeline_serves_training_without_annotations(
    tmp_path: Path, pipeline: list[dict[str, Any]]
) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "one.png")
    settings = section(tmp_path, CLASSES, training_pipeline(pipeline), (0, 1), None)
    settings.test_mode = False
    dataset = build_dataset(settings)
    samples = [dataset[0] for _ in range(20)]
    assert all(sample["img"].data.dim() == 3 for sample in samples)
    assert {sample["img_metas"].data["flip"] for sample in samples} == {False, True}
