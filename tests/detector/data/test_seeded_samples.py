from __future__ import annotations

import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dq.detector.data.seeded_samples import Draw, Sample, SeededSamples
from tests.detector.small_set import built, mixed, section


def samples_of(section: dict[str, Any], *, seed: int = 7, max_bad: int = 10) -> SeededSamples:
    return SeededSamples(built(section), seed=seed, max_bad=max_bad)


def look(sample: Sample) -> tuple[Any, ...]:
    """Return a sample's image and boxes in a form that ``==`` compares."""
    content = sample.content
    return content["img"].data.numpy().tobytes(), content["gt_bboxes"].data.tolist()


def name(sample: Sample) -> str:
    return Path(sample.content["img_metas"].data["filename"]).stem


@pytest.fixture
def copy(digits: Path, tmp_path: Path) -> Path:
    """The digits, to be damaged."""
    return Path(shutil.copytree(digits, tmp_path / "digits"))


def image_of(folder: Path, index: int) -> Path:
    listed = (folder / "ImageSets/Main/train.txt").read_text().split()
    return folder / "JPEGImages" / f"{listed[index]}.jpg"


WRAPPERS = {
    "plain": section,
    "mosaic and MixUp": mixed,
    "repeated": lambda folder: {"type": "RepeatDataset", "times": 2, "dataset": section(folder)},
    "balanced": lambda folder: {
        "type": "ClassBalancedDataset",
        "oversample_thr": 0.5,
        "dataset": section(folder),
    },
    "joined": lambda folder: {
        "type": "ConcatDataset",
        "datasets": [section(folder), section(folder)],
    },
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_sample_depends_only_on_seed_epoch_and_place(kind: str, digits: Path) -> None:
    samples = samples_of(WRAPPERS[kind](digits))
    first = look(samples[Draw(2, 5, 3)])
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    samples[Draw(0, 0, 1)]
    assert look(samples[Draw(2, 5, 3)]) == first
    others = [
        look(samples[Draw(2, 6, 3)]),
        look(samples[Draw(3, 5, 3)]),
        look(samples_of(WRAPPERS[kind](digits), seed=8)[Draw(2, 5, 3)]),
    ]
    assert first not in others


def test_each_of_the_three_generators_is_seeded(digits: Path) -> None:
    samples = samples_of(section(digits))
    drawn: list[tuple[float, float, float]] = []

    def draw(results: Any) -> Any:
        drawn.append((random.random(), np.random.random(), torch.rand(()).item()))
        return results

    samples.pipeline.transforms.insert(0, draw)
    for place in (0, 1, 0):
        samples[Draw(0, place, 3)]
        random.seed(len(drawn))
        np.random.seed(len(drawn))
        torch.manual_seed(len(drawn))
    assert drawn[0] == drawn[2]
    assert all(first != second for first, second in zip(*drawn[:2], strict=True))


@pytest.mark.parametrize("index", [3, 4])
def test_the_generators_of_the_rank_are_restored(index: int, copy: Path) -> None:
    samples = samples_of(section(copy))
    image_of(copy, 4).unlink()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    samples[Draw(0, 0, index)]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before


DAMAGES = {
    "deleted": (lambda path: path.unlink(), "No such file or directory"),
    "empty": (lambda path: path.write_bytes(b""), "it is not an image"),
    "no image": (lambda path: path.write_bytes(b"\0" * 4000), "it is not an image"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_image_that_cannot_be_read_is_replaced(damage: str, copy: Path) -> None:
    samples = samples_of(section(copy))
    whole = look(samples[Draw(1, 9, 5)])
    act, reason = DAMAGES[damage]
    act(image_of(copy, 4))
    sample = samples[Draw(1, 8, 4)]
    assert sample.bad == ((str(image_of(copy, 4)), reason),)
    assert name(sample) != image_of(copy, 4).stem
    assert look(samples[Draw(1, 8, 4)]) == look(sample)
    assert look(samples[Draw(1, 9, 5)]) == whole


def test_annotations_that_vanish_count_too(copy: Path) -> None:
    samples = samples_of(section(copy))
    gone = copy / "Annotations" / f"{image_of(copy, 4).stem}.xml"
    gone.unlink()
    sample = samples[Draw(0, 0, 4)]
    assert sample.bad == ((str(gone), "No such file or directory"),)
    assert sample.content is not None


def test_the_replacement_is_of_the_same_group_if_possible(copy: Path) -> None:
    dataset = built(section(copy))
    dataset.flag = (np.arange(len(dataset)) < 3).astype(np.uint8)
    samples = SeededSamples(dataset, seed=7, max_bad=10)
    alike = {image_of(copy, i).stem for i in (0, 1)}
    image_of(copy, 2).unlink()
    assert {name(samples[Draw(0, place, 2)]) for place in range(8)} == alike
    for i in (0, 1):
        image_of(copy, i).unlink()
    sample = samples[Draw(0, 0, 2)]
    assert name(sample) not in alike
    assert len(sample.bad) == 3


def test_a_mosaic_replaces_a_bad_image(copy: Path) -> None:
    samples = samples_of(mixed(copy))
    for i in (1, 6):
        image_of(copy, i).write_bytes(b"broken")
    found = [samples[Draw(0, place, place % 24)] for place in range(24)]
    assert all(sample.content is not None for sample in found)
    named = {image.path for sample in found for image in sample.bad}
    assert named == {str(image_of(copy, i)) for i in (1, 6)}


def test_it_gives_up_if_too_many_or_all_images_are_bad(copy: Path) -> None:
    few, many = samples_of(section(copy), max_bad=2), samples_of(section(copy), max_bad=1000)
    shutil.rmtree(copy / "JPEGImages")
    for samples, tried in ((few, 3), (many, 24)):
        content, bad = samples[Draw(0, 0, 4)]
        assert content is None
        assert len({image.path for image in bad}) == tried


def test_an_error_of_the_pipeline_itself_is_not_a_bad_image(digits: Path) -> None:
    samples = samples_of(section(digits))

    def broken(results: Any) -> Any:
        raise KeyError("scale")

    samples.pipeline.transforms.insert(2, broken)
    with pytest.raises(KeyError, match="scale"):
        samples[Draw(0, 0, 4)]


def test_an_image_that_the_pipeline_rejects_is_replaced_as_in_mmdet(digits: Path) -> None:
    turned_down = []

    def refuse(results: Any) -> Any:
        if results["ori_filename"].endswith(image_of(digits, 4).name):
            turned_down.append(results["ori_filename"])
            return None
        return results

    samples = samples_of(section(digits))
    samples.pipeline.transforms.insert(2, refuse)
    first = samples[Draw(0, 3, 4)]
    assert turned_down
    assert first.bad == ()
    assert look(samples[Draw(0, 3, 4)]) == look(first)


def test_other_attributes_are_those_of_the_inner_data_set(digits: Path) -> None:
    samples = samples_of(mixed(digits))
    assert samples.CLASSES[0] == "zero"
    assert len(samples) == 24
    samples.update_skip_type_keys(["Mosaic", "MixUp"])
    assert samples._skip_type_keys == ["Mosaic", "MixUp"]
    assert look(pickle.loads(pickle.dumps(samples))[Draw(0, 1, 2)]) == look(samples[Draw(0, 1, 2)])
    assert not hasattr(samples, "no such thing")


def test_mosaic_switched_off_changes_the_sample(digits: Path) -> None:
    samples = samples_of(mixed(digits))
    before = look(samples[Draw(0, 1, 2)])
    samples.update_skip_type_keys(["Mosaic", "RandomAffine", "MixUp"])
    assert look(samples[Draw(0, 1, 2)]) != before


def test_loading_is_wrapped_once_for_any_number_of_loaders(digits: Path) -> None:
    samples = samples_of(section(digits))
    again = SeededSamples(samples._inner, seed=0, max_bad=0)
    watched = again.pipeline.transforms[:3]
    assert [type(each).__name__ for each in watched] == ["_Loading", "_Loading", "MinIoURandomCrop"]
    assert type(watched[0].transform).__name__ == "LoadImageFromFile"
    assert repr(watched[0]).startswith("LoadImageFromFile(")
