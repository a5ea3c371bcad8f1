"""Several test sets: metrics of each with its number, or of all as one, as in mmdet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmdet.datasets import ConcatDataset

from dq.data.digits import CLASSES
from dq.detector.data.datasets import dataset_of
from dq.detector.data.evaluated_sets import save_best_on
from dq.detector.evaluation.evaluate import main_metric, main_metrics, score
from dq.tracking.tracker import BEST
from tests.detector.shapes import TESTING, config_of, part


def found_first(dataset: Any, share: float) -> list[list[np.ndarray[Any, Any]]]:
    """Return results with the true boxes of the first share of the images, and no others."""
    results = []
    for index in range(len(dataset)):
        truth = dataset.get_ann_info(index)
        there = index < share * len(dataset)
        rows = np.concatenate([truth["bboxes"], np.full((len(truth["bboxes"]), 1), 0.9)], 1)
        results.append(
            [rows[(truth["labels"] == label) & there].astype(np.float32)
             for label in range(len(CLASSES))]
        )  # fmt: skip
    return results


def evaluated_set(section: Any) -> Any:
    return dataset_of(config_of(section, None, section), "test", test_mode=True)


def test_each_set_has_its_own_metrics(digits: Path) -> None:
    first, second, third = (part(digits, number, 6, TESTING) for number in range(3))
    dataset = evaluated_set([first, {"type": "ConcatDataset", "datasets": [second, third]}])
    results = found_first(dataset, 1.0)
    # Nothing is detected in the images of the second set.
    results[6:12] = [[np.zeros((0, 5), np.float32)] * len(CLASSES)] * 6
    metrics = score(dataset, results, {"metric": ["mAP", "bbox"], "save_best": "auto"})
    assert [metrics[f"{set_}mAP"] for set_ in ("0_", "1_0_", "1_1_")] == [1.0, 0.0, 1.0]
    assert [metrics[f"{set_}bbox_mAP"] for set_ in ("0_", "1_0_", "1_1_")] == [1.0, 0.0, 1.0]
    assert main_metric(metrics) == ("0_mAP", 1.0)
    assert main_metrics(metrics) == ["0_mAP", "1_0_mAP", "1_1_mAP"]
    assert any(word in "0_mAP" for word in BEST)


def test_metrics_of_flat_sets_are_mmdets(digits: Path) -> None:
    sections = [part(digits, number, 6, TESTING) for number in range(2)]
    dataset = evaluated_set(sections)
    results = found_first(dataset, 0.7)
    theirs = ConcatDataset(dataset.datasets).evaluate(results, metric="mAP", logger="silent")
    assert dataset.evaluate(results, metric="mAP", logger="silent") == theirs


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_sets_in_other_folders_are_evaluated_as_one(
    digits: Path, tmp_path: Path, share: float
) -> None:
    # mmdet reads all annotations from the first set's folder.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(digits)
    section = part(digits, 0, 6, TESTING)
    section["ann_file"] = [section["ann_file"], part(digits, 2, 5, TESTING)["ann_file"]]
    section["img_prefix"] = [str(digits), str(elsewhere)]
    dataset = evaluated_set({**section, "separate_eval": False})
    joined = tmp_path / "joined.txt"
    joined.write_text("".join(Path(name).read_text() for name in section["ann_file"]))
    plain = evaluated_set({**section, "ann_file": str(joined), "img_prefix": str(digits)})
    results = found_first(plain, share)
    settings = {"metric": ["mAP", "bbox"]}
    assert score(dataset, results, settings) == score(plain, results, settings)


def test_save_best_uses_the_first_set_for_a_named_metric(digits: Path) -> None:
    dataset = evaluated_set([part(digits, number, 6, TESTING) for number in range(2)])
    assert save_best_on(dataset, "mAP") == "0_mAP"
    assert save_best_on(dataset, "1_mAP") == "1_mAP"
    assert save_best_on(dataset, "auto") == "auto"
    assert save_best_on(dataset.datasets[0], "mAP") == "mAP"


def test_a_set_without_metric_is_refused_before_training(digits: Path) -> None:
    from mmdet.datasets import DATASETS
    from torch.utils.data import Dataset

    class Plain(Dataset[Any]):
        CLASSES = CLASSES

        def __len__(self) -> int:
            return 2

    DATASETS.register_module(name="PlainForTest", force=True, module=Plain)
    with pytest.raises(ValueError, match="Plain has no metric"):
        evaluated_set({"type": "PlainForTest"})
