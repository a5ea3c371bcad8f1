"""COCO's metric for a folder in VOC's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq.detector.evaluation.evaluate import main_metric, score
from dq.detector.evaluation.kept_predictions import class_precision

CLASSES = ("one", "two")
BOX = "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"


def write_set(folder: Path) -> Any:
    """Write two images: a box of each class, and a difficult one of the second class."""
    from dq.detector.data.voc_folder import VOCFolderDataset

    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    objects = {"a": [("one", 0, (11, 11, 51, 51)), ("two", 1, (61, 61, 91, 91))]}
    objects["b"] = [("two", 0, (21, 21, 41, 61))]
    for image, boxes in objects.items():
        written = []
        for name, difficult, corners in boxes:
            tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
            text = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
            written.append(BOX.format(name, difficult, text))
        size = "<size><width>100</width><height>100</height><depth>3</depth></size>"
        (folder / f"Annotations/{image}.xml").write_text(
            f"<annotation>{size}{''.join(written)}</annotation>"
        )
    (folder / "ImageSets/Main/test.txt").write_text("a\nb\n")
    return VOCFolderDataset(
        classes=CLASSES,
        ann_file=str(folder / "ImageSets/Main/test.txt"),
        img_prefix=f"{folder}/",
        pipeline=[],
        test_mode=True,
    )


def rows(*boxes: tuple[float, ...]) -> Any:
    return np.array(boxes, dtype=np.float32).reshape(-1, 5)


PERFECT = [
    [rows((10, 10, 50, 50, 0.9)), rows((60, 60, 90, 90, 0.8))],
    [rows(), rows((20, 20, 40, 60, 0.7))],
]


def test_perfect_results_give_one_and_difficult_boxes_do_not_count(tmp_path: Path) -> None:
    metrics = score(write_set(tmp_path), PERFECT, {"metric": "bbox"})
    assert metrics["bbox_mAP"] == pytest.approx(1.0)
    assert metrics["bbox_mAP_50"] == pytest.approx(1.0)
    assert "bbox_mAP_l" not in metrics


def test_a_shifted_box_counts_at_the_lower_overlaps(tmp_path: Path) -> None:
    # 40 x 40 moved by 8 to the right: IoU 32 / 48 = 0.667, so 0.5, 0.55, 0.6, 0.65 of ten.
    found = [[rows((18, 10, 58, 50, 0.9)), rows()], PERFECT[1]]
    metrics = score(write_set(tmp_path), found, {"metric": "bbox"})
    assert metrics["bbox_mAP"] == pytest.approx((0.4 + 1.0) / 2)
    assert metrics["bbox_mAP_75"] == pytest.approx(0.5)


def test_no_detections_give_zero(tmp_path: Path) -> None:
    metrics = score(write_set(tmp_path), [[rows(), rows()]] * 2, {"metric": "bbox"})
    assert metrics["bbox_mAP"] == 0.0


@pytest.mark.parametrize("names", [["mAP", "bbox"], ["bbox", "mAP"]])
def test_tables_show_the_first_metric(names: list[str], tmp_path: Path) -> None:
    metrics = score(write_set(tmp_path), PERFECT, {"metric": names})
    wanted = {"mAP": "mAP", "bbox": "bbox_mAP"}
    assert main_metric(metrics)[0] == wanted[names[0]]
    assert {"mAP", "bbox_mAP"} <= set(metrics)


def test_a_metric_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metric 'map' does not exist; use one of mAP"):
        score(write_set(tmp_path), PERFECT, {"metric": "map"})


def test_the_mean_of_the_classes_is_the_metric(tmp_path: Path) -> None:
    # IoU 0.505 as VOC counts pixels (both ends are part of the box), 0.493 otherwise.
    found = [[rows((10, 10, 50, 50, 0.9)), rows()], [rows(), rows((20, 20, 40, 39.7, 0.7))]]
    dataset = write_set(tmp_path)
    classes = class_precision(dataset, found)
    assert classes == {"one": pytest.approx(1.0), "two": pytest.approx(1.0)}
    assert score(dataset, found, {"metric": "mAP"})["mAP"] == pytest.approx(1.0)
