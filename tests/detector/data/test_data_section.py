"""Data sections in any of mmdet's forms: every stage accepts them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv import Config

from dq.data.digits import CLASSES
from dq.detector.config.nested_sections import innermost
from dq.detector.config.read import finish
from dq.detector.data.data_section import calibration_sections, section_of
from dq.detector.data.datasets import (
    calibration_dataset,
    calibration_images,
    dataset_digest,
    dataset_of,
    interleaved,
    validation_loss_dataset,
)
from dq.detector.data.datasets import test_classes as configured_classes
from dq.detector.data.leaves import leaves, located
from dq.detector.data.loader_options import evaluation_workers
from dq.detector.evaluation.evaluate import score
from dq.detector.evaluation.kept_predictions import class_precision, predictions_of
from dq.detector.export.write import image_size
from dq.detector.loading.training_loader import training_loader
from tests.detector.shapes import MIXED, TESTING, TRAINING, config_of, nesting, part
from tests.detector.small_set import LOADING


def files(section: Any, name: str = "train") -> list[str]:
    config = config_of(**{"train": None, "val": None, "test": None, name: section})
    return [each["ann_file"] for each in innermost(section_of(config, name))]


def leaf(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "CocoDataset", "ann_file": name, **more}


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (leaf("a"), ["a"]),
        ([leaf("a"), [leaf("b"), leaf("c")]], ["a", "b", "c"]),
        ((leaf("a"), leaf("b")), ["a", "b"]),
        ({"type": "RepeatDataset", "times": 2, "dataset": leaf("a")}, ["a"]),
        ({"type": "RepeatDataset", "times": 2, "dataset": [leaf("a"), leaf("b")]}, ["a", "b"]),
        ({"type": "ConcatDataset", "datasets": [leaf("a"), [leaf("b")]]}, ["a", "b"]),
        ({"type": "OnesOwn", "dataset": leaf("a"), "datasets": None}, ["a"]),
        (leaf(["a", "b"]), ["a", "b"]),
        (
            {"type": "ClassBalancedDataset", "dataset": {
                "type": "MultiImageMixDataset", "dataset": leaf(["a", "b"]), "pipeline": []}},
            ["a", "b"],
        ),
    ],
)  # fmt: skip
def test_innermost_sections_are_found_in_any_form(section: Any, expected: list[str]) -> None:
    assert files(section) == expected


def test_lists_of_folders_match_lists_of_files() -> None:
    given = leaf(["a", "b"], img_prefix=["x", "y"], seg_prefix="z", separate_eval=False)
    first, second = innermost(section_of(config_of(given, None, None), "train"))
    assert (first["img_prefix"], second["img_prefix"]) == ("x", "y")
    assert first["seg_prefix"] == second["seg_prefix"] == "z"
    assert "separate_eval" not in first


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (None, "the config has no data.train section"),
        ([], "no data.train section"),
        ([[]], "data.train.0 is an empty list"),
        ("coco", "data.train is 'coco'; give a dict"),
        ({"ann_file": "a"}, "data.train has no type"),
        ([leaf("a"), {"dataset": leaf("a")}], "data.train.1 has no type"),
        (leaf(["a", "b"], img_prefix=["x"]), "has 2 ann_file and 1 img_prefix; give as many"),
        (leaf("a", img_prefix=["x"]), "data.train.img_prefix is a list and ann_file is not"),
        (leaf("a", classes="person"), r"a single class is written classes=\('person',\)"),
        (leaf([]), "data.train.ann_file is an empty list"),
    ],
)
def test_invalid_sections_are_refused_by_name(section: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        files(section)


def seen_by(dataset: Any) -> list[set[str]]:
    return [{info["filename"] for info in each.data_infos} for each in leaves(dataset)]


@pytest.mark.parametrize("seed", range(10))
def test_every_stage_accepts_a_random_nesting(seed: int, digits: Path) -> None:
    draw = random.Random(seed)
    config = config_of(
        train=nesting(digits, draw, TRAINING),
        val=nesting(digits, draw, TESTING, mixing=False),
        test=nesting(digits, draw, TESTING, mixing=False),
        workflow=[("train", 1), ("val", 1)],
    )
    config = finish(config)
    assert configured_classes(config) == tuple(CLASSES)
    assert dataset_digest(config)
    assert dataset_digest(config, "test") not in (None, dataset_digest(config))
    assert image_size(config, None) == (48, 48)
    # Training and validation losses, through the data loader.
    for dataset in (dataset_of(config, "train"), validation_loss_dataset(config)):
        batch = next(training_loader(config, dataset, seed=1).steps(0))[0]
        assert batch["img"].data[0].shape == (2, 3, 48, 48)
    # Calibration uses every training set.
    calibration = calibration_dataset(config)
    sets, trained = seen_by(calibration), seen_by(dataset_of(config, "train"))
    assert all(each in sets for each in trained)
    drawn = [draw_files(calibration, n) for n in (len(sets), 40)]
    assert all(drawn[0] & each for each in sets)
    assert drawn[1] == set.union(*sets)
    # Evaluation: each image once, metrics of each set.
    for split in ("val", "test"):
        assert evaluation_workers(config, split) == 0
        dataset = dataset_of(config, split, test_mode=True)
        assert len(dataset) == sum(len(each) for each in leaves(dataset))
        results = [[np.zeros((0, 5), np.float32)] * len(CLASSES)] * len(dataset)
        assert set(score(dataset, results, {"metric": "mAP"}).values()) == {0.0}
        assert "img_metas" in dataset[len(dataset) - 1]
        predictions = predictions_of(dataset, results)
        assert predictions is not None
        assert len(predictions.pictures) == len(dataset)
        assert all(Path(picture.path).is_file() for picture in predictions.pictures)
        assert set(class_precision(dataset, results).values()) == {0.0}


def draw_files(dataset: Any, number: int) -> set[str]:
    """Return the files of the images for a calibration with this number of images."""
    found: set[str] = set()

    for index in interleaved(dataset, 3)[:number]:
        place = located(dataset, index)
        assert place is not None
        found.add(place.leaf.data_infos[place.at]["filename"])
    return found


def test_calibration_uses_equal_shares_and_is_reproducible(digits: Path) -> None:
    sizes = (20, 3, 1)
    sections = [part(digits, number, size, TRAINING) for number, size in enumerate(sizes)]
    config = config_of(sections, None, part(digits, 0, 4, TESTING))
    dataset = calibration_dataset(config)
    shares = np.digitize(interleaved(dataset, 0)[:8], np.cumsum(sizes))
    assert [int((shares == number).sum()) for number in range(3)] == [4, 3, 1]
    runs = [
        torch.cat(list(calibration_images(dataset, num_images=8, batch_size=3, seed=0)))
        for _ in range(2)
    ]
    assert torch.equal(*runs)
    # A single set is only shuffled.
    alone = calibration_dataset(config_of(sections[0], None, part(digits, 0, 4, TESTING)))
    assert interleaved(alone, 5) == np.random.default_rng(5).permutation(20).tolist()


def test_calibration_sees_images_as_a_test_does(digits: Path) -> None:
    mixed = {
        "type": "RepeatDataset", "times": 3,
        "dataset": {"type": "ClassBalancedDataset", "oversample_thr": 0.1,
                    "dataset": part(digits, 1, 6, TRAINING)},
    }  # fmt: skip
    config = config_of(mixed, None, part(digits, 1, 6, TESTING))
    calibrated = calibration_dataset(config)
    tested = dataset_of(config, "test", test_mode=True)
    assert len(calibrated) == len(tested) == 6
    assert all(torch.equal(calibrated[i]["img"][0], tested[i]["img"][0]) for i in range(6))


def test_a_set_named_twice_is_used_once_in_calibration(digits: Path) -> None:
    one = part(digits, 0, 5, TRAINING)
    repeated = {"type": "RepeatDataset", "times": 2, "dataset": one}
    config = config_of([one, repeated], None, part(digits, 0, 4, TESTING))
    assert len(calibration_sections(config)) == 1


def test_calibration_loads_images_as_they_are_stored(digits: Path) -> None:
    stored = [{"type": "LoadImageFromFile", "file_client_args": {"backend": "lmdb"}}]
    own = [{"type": "LoadFromCache", "cache": "x"}]
    given: list[tuple[list[Any], Any]] = [
        (stored, {"type": "LoadImageFromFile", "file_client_args": {"backend": "lmdb"}}),
        (own, own[0]),
        ([{"type": "LoadImageFromFile", "to_float32": True}], {"type": "LoadImageFromFile"}),
    ]
    for loading, expected in given:
        train = part(digits, 0, 5, [*loading, *TRAINING[1:]])
        found = calibration_sections(config_of(train, None, part(digits, 0, 4, TESTING)))[0]
        assert found["pipeline"] == [expected, *TESTING[1:]]


def test_validation_losses_mix_where_training_does(digits: Path) -> None:
    train = {"type": "RepeatDataset", "times": 2, "dataset": {
        "type": "MultiImageMixDataset", "pipeline": MIXED,
        "dataset": part(digits, 0, 6, LOADING)}}  # fmt: skip
    val = part(digits, 2, 5, TESTING)
    dataset = validation_loss_dataset(config_of(train, {**val, "test_mode": True}, val))
    assert type(dataset).__name__ == "MultiImageMixDataset"
    assert len(dataset) == 5
    assert "gt_bboxes" in dataset[0]


def test_validation_data_may_be_missing(digits: Path) -> None:
    config = finish(config_of(part(digits, 0, 5, TRAINING), None, part(digits, 0, 4, TESTING)))
    assert "val" not in config.data
    assert configured_classes(config) == tuple(CLASSES)
    assert finish(Config({**config._cfg_dict, "data": {**config.data, "val": None}})) is not None


def test_a_setting_given_twice_is_one_line(digits: Path) -> None:
    config = config_of(part(digits, 0, 5, TRAINING), None, part(digits, 0, 4, TESTING))
    config.data.train_dataloader = {"samples_per_gpu": 4}
    with pytest.raises(ValueError, match="contradicts itself: `samples_per_gpu`"):
        finish(config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"worker_per_gpu": 1},
            "data.val_dataloader.worker_per_gpu is not a setting; did you mean",
        ),
        ({"workers_per_gpu": -1}, "data.val_dataloader.workers_per_gpu is -1"),
        ({"shuffle": True}, "data.val_dataloader shuffles"),
    ],
)
def test_evaluation_loader_options_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluation_workers(Config({"data": {"val_dataloader": options}}), "val")


def test_mixed_images_cannot_be_evaluated(digits: Path) -> None:
    mixed = {
        "type": "MultiImageMixDataset", "pipeline": MIXED, "dataset": part(digits, 0, 6, LOADING),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"data.test mixes images .*; give its innermost data set"):
        dataset_of(config_of(mixed, None, mixed), "test", test_mode=True)
    whole = {**mixed, "dataset": part(digits, 0, 6, TESTING)}
    assert len(dataset_of(config_of(mixed, None, whole), "test", test_mode=True)) == 6


def test_sets_of_other_classes_are_refused(digits: Path) -> None:
    fewer = {**part(digits, 1, 4, TRAINING), "classes": CLASSES[:3]}
    config = config_of([part(digits, 0, 5, TRAINING), fewer], None, fewer)
    with pytest.raises(ValueError, match="a detector has one list"):
        dataset_of(config, "train")
