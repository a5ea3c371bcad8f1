"""Data sets without image files: all possible checks are made, the others are logged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
import torch
from mmcv import Config
from mmcv.fileio.file_client import BaseStorageBackend
from mmdet.datasets import DATASETS, CustomDataset
from mmdet.datasets.builder import PIPELINES

from dq.data.digits import CLASSES
from dq.detector.data.datasets import calibration_dataset, calibration_images, dataset_of
from dq.detector.data.datasets import test_classes as configured_classes
from dq.detector.evaluation.kept_predictions import predictions_of
from dq.detector.loading.training_loader import training_loader
from tests.detector.shapes import TESTING, TRAINING, config_of, part

WITHOUT_FILES = TRAINING[2:]


@DATASETS.register_module(force=True)
class InMemory(CustomDataset):  # type: ignore[misc]
    """Images that are drawn on request, only for training."""

    CLASSES = ("cat", "dog")

    def load_annotations(self, ann_file: str) -> list[dict[str, Any]]:
        box = np.array([[4, 4, 30, 30]], np.float32)
        ann = {"bboxes": box, "labels": np.array([1])}
        return [{"width": 64, "height": 48, "ann": ann} for _ in range(5)]

    def prepare_train_img(self, index: int) -> Any:
        info = self.data_infos[index]
        image = np.full((48, 64, 3), index, np.uint8)
        results = {"img": image, "img_info": info, "ann_info": self.get_ann_info(index)}
        results |= {"filename": None, "ori_filename": None, "img_shape": image.shape}
        results |= {"ori_shape": image.shape, "img_fields": ["img"], "bbox_fields": ["gt_bboxes"]}
        results |= {"gt_bboxes": info["ann"]["bboxes"], "gt_labels": info["ann"]["labels"]}
        return self.pipeline(results)


@DATASETS.register_module(force=True)
class InMemoryToo(InMemory):
    """The same, also for tests."""

    prepare_test_img = InMemory.prepare_train_img


def in_memory(kind: str, pipeline: list[Any]) -> dict[str, Any]:
    return {"type": kind, "ann_file": "", "pipeline": pipeline}


def test_images_in_memory_go_through_every_stage(caplog: pytest.LogCaptureFixture) -> None:
    train = in_memory("InMemory", WITHOUT_FILES)
    config = config_of(train, None, in_memory("InMemoryToo", TESTING[1:]))
    assert configured_classes(config) == ("cat", "dog")
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of(config, "train")
    assert "image files of InMemory are not looked for: it names none" in caplog.text
    config.data.train_dataloader = {"samples_per_gpu": 2, "workers_per_gpu": 0}
    batch = next(training_loader(config, dataset, seed=0).steps(0))[0]
    assert batch["img"].data[0].shape == (2, 3, 48, 48)
    images = torch.cat(
        list(calibration_images(calibration_dataset(config), num_images=9, batch_size=4, seed=0))
    )
    assert sorted(images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4]
    tested = dataset_of(config, "test", test_mode=True)
    results = [[np.zeros((0, 5), np.float32)] * 2] * 5
    predictions = predictions_of(tested, results)
    assert predictions is not None
    assert predictions.pictures[3].path == "number 3 of InMemoryToo"


def test_calibration_works_with_a_training_set_in_memory_and_test_files(digits: Path) -> None:
    train = in_memory("InMemory", WITHOUT_FILES)
    config = config_of(train, None, part(digits, 0, 4, TESTING))
    images = list(
        calibration_images(calibration_dataset(config), num_images=4, batch_size=4, seed=0)
    )
    assert images[0].shape == (4, 3, 48, 48)


@pytest.fixture
def zipped(digits: Path) -> dict[str, Any]:
    """Arguments of a custom storage backend that has the digits' images under other names."""

    class Zip(BaseStorageBackend):  # type: ignore[misc]
        def __init__(self, folder: str) -> None:
            self.folder = folder

        def get(self, path: str) -> bytes:
            return (digits / "JPEGImages" / Path(path).name).read_bytes()

        def get_text(self, path: str) -> str:
            raise NotImplementedError

    mmcv.FileClient.register_backend("zip", Zip, force=True)
    return {"backend": "zip", "folder": str(digits)}


def stored(digits: Path, given: dict[str, Any], pipeline: list[Any]) -> dict[str, Any]:
    section = part(digits, 0, 6, pipeline)
    loading = {**pipeline[0], "file_client_args": given}
    return {**section, "img_subdir": "archive.zip@", "pipeline": [loading, *pipeline[1:]]}


def test_images_in_a_custom_storage_are_not_looked_for_on_the_disk(
    digits: Path, zipped: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    train = stored(digits, zipped, TRAINING)
    # Tests read plain files, calibration reads the training storage.
    config = config_of(train, None, part(digits, 0, 6, TESTING))
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of(config, "train")
    assert "are not looked for: they are read through file_client_args {'backend': 'zip'" in (
        caplog.text
    )
    assert dataset[0]["img"].data.shape == (3, 48, 48)
    calibrated, plain = calibration_dataset(config), dataset_of(config, "test", test_mode=True)
    assert torch.equal(calibrated[2]["img"][0], plain[2]["img"][0])


@pytest.mark.parametrize("backend", ["petrel", "lmdb", "tar"])
def test_a_missing_storage_is_reported_in_one_line(digits: Path, backend: str) -> None:
    given = {"backend": backend, **({"db_path": "x"} if backend == "lmdb" else {})}
    train = stored(digits, given, TRAINING)
    with pytest.raises(ValueError, match=f"data.train: file_client_args .*{backend}.* cannot be"):
        dataset_of(config_of(train, None, train), "train")
    # Also for annotations.
    train = {**part(digits, 0, 6, TRAINING), "file_client_args": given}
    with pytest.raises(ValueError, match=f"data.train.* {backend}"):
        dataset_of(config_of(train, None, train), "train")


def test_missing_files_are_named_where_mmdet_loads_them(digits: Path) -> None:
    train = {**part(digits, 0, 6, TRAINING), "img_subdir": "elsewhere"}
    with pytest.raises(ValueError, match=r"data\.train: 6 of 6 images missing"):
        dataset_of(config_of(train, None, train), "train")


@PIPELINES.register_module(force=True)
class LoadDrawn:
    """A custom step that creates the image."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results["img"] = np.full((160, 160, 3), 7, np.uint8)
        results["filename"] = results["ori_filename"] = results["img_info"]["filename"]
        results["img_shape"] = results["ori_shape"] = results["img"].shape
        results["img_fields"] = ["img"]
        return results


def test_images_of_a_custom_step_are_not_looked_for(
    digits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = part(digits, 0, 6, [{"type": "LoadDrawn"}, *TRAINING[1:]])
    config = config_of({**train, "img_subdir": "elsewhere"}, None, part(digits, 0, 6, TESTING))
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of(config, "train")
    assert "are not looked for: no LoadImageFromFile is in its pipeline" in caplog.text
    assert float(dataset[0]["img"].data.max()) == 7.0
    assert float(calibration_dataset(config)[0]["img"][0].max()) == 7.0


def test_a_data_set_of_another_kind_than_mmdets_is_checked_as_far_as_possible(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Own(torch.utils.data.Dataset[Any]):
        CLASSES = CLASSES

        def __init__(self, number: int) -> None:
            self.number = number

        def __len__(self) -> int:
            return self.number

        def __getitem__(self, index: int) -> Any:
            return {"img": torch.full((3, 8, 8), float(index))}

    DATASETS.register_module(name="OwnForTest", force=True, module=Own)
    config = Config({"data": {"train": {"type": "OwnForTest", "number": 3}}})
    with caplog.at_level(logging.WARNING):
        assert len(dataset_of(config, "train")) == 3
    assert "image files of Own are not looked for: it has no list of them" in caplog.text
    assert "boxes of Own are not checked" in caplog.text
    images = list(
        calibration_images(calibration_dataset(config), num_images=3, batch_size=3, seed=0)
    )
    assert sorted(images[0][:, 0, 0, 0].tolist()) == [0, 1, 2]
