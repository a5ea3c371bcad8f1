"""A search measures on data.val, or on training images that calibration does not use."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmcv import Config
from mmdet.datasets import CocoDataset

from dq.detector.config.read import finish, read_config
from dq.detector.data.datasets import calibration_dataset, interleaved
from dq.detector.search.measured_images import keep_images_, measured_images
from tests.detector.coco_set import CLASSES, write_coco


def names(dataset: Any) -> list[str]:
    return [info["filename"] for info in dataset.data_infos]


@pytest.fixture
def plan(digits: Path) -> Config:
    """A config with a validation set of its own."""
    root = Path(__file__).resolve().parents[3]
    config = read_config(root / "configs/digits/ssd_resnet_fpn_160.py")
    config.data_root = str(digits)
    for part in ("val", "test"):
        config.data[part].ann_file = str(digits / f"ImageSets/Main/{part}.txt")
        config.data[part].img_prefix = str(digits)
    config.data.train.dataset.ann_file = str(digits / "ImageSets/Main/train.txt")
    config.data.train.dataset.img_prefix = str(digits)
    return finish(config)


def training_order(config: Config) -> list[str]:
    dataset = calibration_dataset(config)
    return [dataset.data_infos[i]["filename"] for i in interleaved(dataset, 0)]


def test_a_validation_set_of_its_own_is_measured(plan: Config) -> None:
    assert len(measured_images(plan, calibrated_on=4, seed=0)) == 7


@pytest.mark.parametrize("val", [None, "test"])
def test_without_one_training_images_are_measured_that_calibration_does_not_use(
    plan: Config, val: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if val is None:
        del plan.data["val"]
    else:
        plan.data["val"] = copy.deepcopy(plan.data[val])
    found = measured_images(plan, calibrated_on=10, seed=0)
    order = training_order(plan)
    assert set(names(found)) == set(order[10:])
    assert "the search measures on 14 images of data.train" in caplog.text
    # Boxes belong to their images, and the metric counts these images alone.
    perfect = [
        [
            np.pad(info["bboxes"][info["labels"] == label], ((0, 0), (0, 1)), constant_values=1.0)
            for label in range(len(found.CLASSES))
        ]
        for info in (found.get_ann_info(index) for index in range(len(found)))
    ]
    assert found.evaluate(perfect)["mAP"] == pytest.approx(1.0)


def moved(section: Any, change: Callable[[str], str]) -> None:
    section.ann_file, section.img_prefix = change(section.ann_file), change(section.img_prefix)


def below_root(section: Any) -> None:
    root = Path(section.img_prefix)
    moved(section, lambda path: str(Path(path).relative_to(root)))
    section.data_root = str(root)


def linked(section: Any) -> None:
    Path("link").symlink_to(section.img_prefix)
    moved(section, lambda path: path.replace(section.img_prefix, "link"))


@pytest.mark.parametrize(
    "spell",
    [
        lambda section: moved(section, os.path.relpath),
        lambda section: moved(section, lambda path: path.replace("/Main/", "/Main/../Main//")),
        lambda section: moved(section, lambda path: path if path.endswith(".txt") else f"{path}/"),
        below_root,
        linked,
        lambda section: section.update(img_subdir="JPEGImages/", data_root=None),
    ],
)
@pytest.mark.parametrize("changed", ["val", "test"])
def test_the_test_set_is_recognised_however_it_is_written(
    plan: Config,
    spell: Callable[[Any], None],
    changed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    plan.data["test"].img_subdir = "JPEGImages"
    plan.data["val"] = copy.deepcopy(plan.data["test"])
    spell(plan.data[changed])
    measured_images(plan, calibrated_on=10, seed=0)
    assert "data.val is data.test: the search measures on 14 images of data.train" in caplog.text


def test_a_small_training_set_is_divided_in_two(plan: Config) -> None:
    del plan.data["val"]
    found = measured_images(plan, calibrated_on=1000, seed=0)
    assert set(names(found)) == set(training_order(plan)[12:])


def test_several_training_sets_are_measured_as_one(plan: Config) -> None:
    del plan.data["val"]
    part = plan.data.train.dataset
    plan.data["train"] = [part, copy.deepcopy(part)]
    plan.data.train[1].ann_file = part.ann_file.replace("train.txt", "test.txt")
    found = measured_images(plan, calibrated_on=5, seed=0)
    assert len(found) == 24 + 11 - 5
    empty = [[np.zeros((0, 5), dtype=np.float32)] * len(found.CLASSES)] * len(found)
    assert found.evaluate(empty)["mAP"] == 0.0


def test_a_part_of_a_coco_set_is_evaluated_alone(tmp_path: Path) -> None:
    dataset = CocoDataset(
        ann_file=str(write_coco(tmp_path)),
        img_prefix=str(tmp_path / "images"),
        pipeline=[],
        test_mode=True,
        classes=CLASSES,
    )
    keep_images_(dataset, [0, 2])
    assert names(dataset) == ["0.png", "2.png"]
    perfect = [
        [
            np.pad(info["bboxes"][info["labels"] == label], ((0, 0), (0, 1)), constant_values=1.0)
            for label in range(len(CLASSES))
        ]
        for info in (dataset.get_ann_info(index) for index in range(2))
    ]
    assert dataset.evaluate(perfect)["bbox_mAP"] == pytest.approx(1.0)


def test_a_data_set_of_another_kind_cannot_be_divided() -> None:
    class Other:
        def __len__(self) -> int:
            return 3

    with pytest.raises(ValueError, match=r"Other.* cannot be divided .*; give a data\.val"):
        keep_images_(Other(), [0])


@pytest.mark.parametrize("other", ["CocoDataset", "VOCFolderDataset"])
def test_training_sets_that_mmdet_cannot_evaluate_as_one_are_measured_one_by_one(
    plan: Config, other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coco = {
        "type": "CocoDataset",
        "classes": CLASSES,
        "ann_file": str(write_coco(tmp_path)),
        "img_prefix": str(tmp_path / "images"),
        "pipeline": [],
    }
    second = str(write_coco(tmp_path, name="second.json"))
    own = plan.data.train.dataset
    own.classes = CLASSES
    del plan.data["val"]
    plan.data["train"] = [coco, {**coco, "ann_file": second} if other == "CocoDataset" else own]
    dataset = measured_images(plan, calibrated_on=1, seed=0)
    assert [type(part).__name__ for part in dataset.datasets] == ["CocoDataset", other]
    assert dataset.separate_eval
    assert "the main metric is that of the first" in caplog.text


def test_a_training_pipeline_for_an_evaluation_is_one_line(plan: Config) -> None:
    plan.data.val = copy.deepcopy(plan.data.train)
    with pytest.raises(ValueError, match=r"^data\.val: its pipeline has LoadAnnotations"):
        measured_images(plan, calibrated_on=4, seed=0)
