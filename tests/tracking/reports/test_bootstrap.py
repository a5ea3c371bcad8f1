"""The bootstrap: its metric is COCO's, and it tells a difference from chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq.detector.evaluation.matches import matches_of
from dq.detector.metrics.coco_metric import coco_metrics
from dq.tracking.record.matches import FILE_NAME, Matches, read_matches, write_matches
from dq.tracking.reports import bootstrap
from dq.tracking.reports.bootstrap import difference, mean_difference, mean_precisions

CLASSES = ("a", "b", "c")
IMAGES = 24
ONCE = np.ones((1, IMAGES))


class Boxes:
    """A data set of boxes alone, some of which are to be ignored."""

    CLASSES = CLASSES

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.data_infos = [{"filename": f"{number}.jpg"} for number in range(IMAGES)]
        self.truth = []
        for _ in range(IMAGES):
            number = int(random.integers(0, 5))
            corner = random.uniform(0, 60, (number, 2))
            boxes = np.hstack([corner, corner + random.uniform(8, 40, (number, 2))])
            ignored = random.random(number) < 0.15
            labels = random.integers(0, len(CLASSES), number)
            self.truth.append(
                {
                    "bboxes": boxes[~ignored], "labels": labels[~ignored],
                    "bboxes_ignore": boxes[ignored], "labels_ignore": labels[ignored],
                }
            )  # fmt: skip

    def __len__(self) -> int:
        return IMAGES

    def get_ann_info(self, number: int) -> dict[str, Any]:
        return self.truth[number]


def detections(dataset: Boxes, noise: float, seed: int, *, false: int = 2) -> list[Any]:
    """Return mmdet's results: the annotated boxes, moved, and some that are false."""
    random = np.random.default_rng(seed)
    results = []
    for info in dataset.truth:
        found: list[list[Any]] = [[] for _ in CLASSES]
        for box, label in zip(info["bboxes"], info["labels"], strict=True):
            moved = box + random.normal(0, noise, 4)
            found[label].append([*moved, random.uniform(0.3, 1.0)])
        for _ in range(false):
            corner = random.uniform(0, 60, 2)
            box = [*corner, *(corner + 20), random.uniform(0.0, 0.6)]
            found[int(random.integers(0, len(CLASSES)))].append(box)
        results.append([np.array(rows, np.float32).reshape(-1, 5) for rows in found])
    return results


def matches(noise: float, seed: int) -> Matches:
    dataset = Boxes()
    found = matches_of(dataset, detections(dataset, noise, seed))
    assert found is not None
    return found


@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_image_once_is_cocos_metric(noise: float, seed: int) -> None:
    dataset = Boxes(seed)
    results = detections(dataset, noise, seed)
    found = matches_of(dataset, results)
    assert found is not None
    expected = coco_metrics(dataset, results)["bbox_mAP"]
    assert mean_precisions(found, ONCE) == pytest.approx(expected, abs=1e-9)


def test_images_that_are_not_drawn_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Boxes()
    results = detections(dataset, 2.0, 3)
    once = matches_of(dataset, results)
    assert once is not None
    left_out = np.ones(IMAGES)
    left_out[::2] = 0
    part = Boxes()
    part.truth, part.data_infos = dataset.truth[1::2], dataset.data_infos[1::2]
    expected = coco_metrics(_Short(part), results[1::2])["bbox_mAP"]
    draws = np.stack([left_out, np.ones(IMAGES), 2 * np.ones(IMAGES)])
    some, one, two = mean_precisions(once, draws)
    assert some == pytest.approx(expected, abs=1e-9)
    # Weights are relative: all images twice is the same metric.
    assert two == pytest.approx(one, abs=1e-9)
    # Draws are computed in parts, and each as if it were alone.
    for most in (1, once.counted.size * 2):
        monkeypatch.setattr(bootstrap, "MOST_VALUES", most)
        assert mean_precisions(once, draws).tolist() == [some, one, two]


def test_a_class_without_annotations_in_a_draw_does_not_count_there() -> None:
    found = matches(1.0, 0)
    without = (found.annotations[:, 0] == 0).astype(float)
    assert without.sum() > 2
    others = found.label > 0
    alone = replace(
        found,
        annotations=found.annotations[:, 1:],
        label=found.label[others] - 1,
        image=found.image[others],
        score=found.score[others],
        hit=found.hit[others],
        counted=found.counted[others],
    )
    draws = np.stack([without, np.ones(IMAGES)])
    (here, everywhere), (there, _) = mean_precisions(found, draws), mean_precisions(alone, draws)
    assert here == pytest.approx(there, abs=1e-12)
    assert here != pytest.approx(everywhere, abs=1e-3)


class _Short(Boxes):
    """Some of the images of another data set."""

    def __init__(self, other: Boxes) -> None:
        self.truth, self.data_infos = other.truth, other.data_infos

    def __len__(self) -> int:
        return len(self.truth)


def test_a_real_difference_is_told_from_chance() -> None:
    good, as_good, bad = matches(1.0, 0), matches(1.0, 1), matches(5.0, 2)
    same = difference(good, good)
    assert same is not None
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    chance = difference(good, as_good)
    assert chance is not None
    assert chance.is_chance
    assert "within chance" in str(chance)
    real = difference(good, bad)
    assert real is not None
    assert real.high < 0
    assert not real.is_chance
    # The same draws each time.
    assert difference(good, bad) == real
    back = difference(bad, good)
    assert back is not None
    assert back.value == pytest.approx(-real.value)


def test_the_difference_of_several_pairs_is_their_mean_on_the_same_draws() -> None:
    pairs = [(matches(1.0, 0), matches(5.0, 2)), (matches(1.0, 1), matches(3.0, 3))]
    each = [difference(first, second) for first, second in pairs]
    mean = mean_difference(pairs)
    assert mean is not None
    values = [found.value for found in each if found is not None]
    assert mean.value == pytest.approx(sum(values) / 2)
    # A pair twice is that pair: further seeds do not narrow what depends on the images.
    assert mean_difference([pairs[0], pairs[0]]) == each[0]
    other = replace(pairs[1][1], names=pairs[1][1].names[::-1])
    assert mean_difference([pairs[0], (pairs[1][0], other)]) is None


def test_other_images_or_annotations_cannot_be_paired() -> None:
    one = matches(1.0, 0)
    assert difference(one, replace(one, names=one.names[::-1])) is None
    other = one.annotations.copy()
    other[0, 0] += 1
    assert difference(one, replace(one, annotations=other)) is None


def test_a_file_keeps_them_and_a_damaged_one_is_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = matches(1.0, 0)
    assert read_matches(tmp_path) is None
    write_matches(tmp_path, one)
    found = read_matches(tmp_path)
    assert found is not None
    assert np.array_equal(found.hit, one.hit)
    assert difference(one, found) == difference(one, one)
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:200])
    assert read_matches(tmp_path) is None
    assert "cannot be read" in caplog.messages[-1]


def test_nothing_found_is_zero() -> None:
    dataset = Boxes()
    none = [[np.zeros((0, 5), np.float32) for _ in CLASSES] for _ in range(IMAGES)]
    found = matches_of(dataset, none)
    assert found is not None
    assert mean_precisions(found, ONCE) == 0.0
    assert matches_of(object(), none) is None
