"""The digits data set: same bytes for same arguments, disjoint splits, tight boxes."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dq.data.digits import CLASSES, STAMP, write_digits
from dq.data.layout import annotation_path, image_path, read_boxes, read_image_set
from dq.data.originals import DIGIT_INDICES, PHOTOGRAPHS, Originals, read_originals
from dq.data.scene import VISIBLE, choose_colour, draw_ink, draw_scene

SMALL = {"num_train": 6, "num_val": 2, "num_test": 3, "image_size": 96}


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def ids_of(folder: Path, split: str) -> list[str]:
    ids = read_image_set(folder, split)
    assert ids is not None
    return ids


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits", **SMALL)


@pytest.fixture(scope="module")
def originals() -> dict[str, Originals]:
    return {split: read_originals(split) for split in DIGIT_INDICES}


def test_layout_is_that_of_voc(written: Path) -> None:
    ids = {split: ids_of(written, split) for split in ("train", "val", "trainval", "test")}
    assert {split: len(some) for split, some in ids.items()} == {
        "train": 6,
        "val": 2,
        "trainval": 8,
        "test": 3,
    }
    assert ids["trainval"] == ids["train"] + ids["val"]
    assert len(list((written / "JPEGImages").iterdir())) == 11
    assert len(list((written / "Annotations").iterdir())) == 11
    assert sorted(path.name for path in written.parent.iterdir()) == ["digits"]


def test_same_arguments_write_the_same_bytes(written: Path, tmp_path: Path) -> None:
    assert bytes_of(write_digits(tmp_path / "again", **SMALL)) == bytes_of(written)


def test_another_seed_draws_other_images(written: Path, tmp_path: Path) -> None:
    other = bytes_of(write_digits(tmp_path / "other", **SMALL, seed=1))
    one = bytes_of(written)
    assert other.keys() == one.keys()
    assert not [path for path in one if path.endswith(".jpg") and one[path] == other[path]]


def test_more_images_do_not_change_the_first(written: Path, tmp_path: Path) -> None:
    more = bytes_of(write_digits(tmp_path / "more", **{**SMALL, "num_train": 8}))
    assert all(
        more[path] == content
        for path, content in bytes_of(written).items()
        if path.startswith(("JPEGImages", "Annotations"))
    )


def test_boxes_lie_inside_and_hardly_overlap(written: Path) -> None:
    for image_id in ids_of(written, "trainval") + ids_of(written, "test"):
        with Image.open(image_path(written, image_id)) as image:
            assert image.size == (96, 96)
        boxes = read_boxes(annotation_path(written, image_id))
        assert 1 <= len(boxes) <= 6
        for box in boxes:
            assert box.name in CLASSES
            assert 1 <= box.xmin < box.xmax <= 96
            assert 1 <= box.ymin < box.ymax <= 96
        corners = np.array([(box.xmin - 1, box.ymin - 1, box.xmax, box.ymax) for box in boxes])
        low = np.maximum(corners[:, None, :2], corners[None, :, :2])
        high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=2)
        areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
        iou = shared / (areas[:, None] + areas[None, :] - shared)
        assert (iou[~np.eye(len(boxes), dtype=bool)] < 0.1).all()


def test_ink_reaches_all_four_sides_of_its_box(originals: dict[str, Originals]) -> None:
    for index, size in enumerate(range(20, 65, 4)):
        ink = draw_ink(originals["train"].digits[index], size, angle=index * 2 - 12)
        for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]):
            assert edge.max() >= VISIBLE
        assert 0 <= ink.min() <= ink.max() <= 1
        assert 0.5 * size <= ink.shape[0] <= 1.5 * size


def test_boxes_hold_all_the_ink_and_nothing_else(originals: dict[str, Originals]) -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    flat = Originals(
        digits=originals["test"].digits,
        labels=originals["test"].labels,
        photographs={"grey": grey},
    )
    for seed in range(8):
        scene = draw_scene(flat, 192, np.random.default_rng(seed))
        inked = (scene.picture != 128).any(axis=2)
        in_boxes = np.zeros_like(inked)
        for digit in scene.digits:
            window = np.s_[digit.top : digit.bottom, digit.left : digit.right]
            in_boxes[window] = True
            for edge in (inked[window][[0, -1]], inked[window][:, [0, -1]].T):
                assert edge.any(axis=1).all()
        assert not (inked & ~in_boxes).any()


def test_ink_has_contrast_to_its_background() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([0.299, 0.587, 0.114])
    for level in (0, 60, 128, 200, 255):
        window = np.full((10, 10, 3), level, dtype=np.uint8)
        assert abs(choose_colour(window, 0.9, rng) @ weights - level) >= 60
    busy = rng.choice(np.array([0, 255], dtype=np.uint8), (10, 10, 1)).repeat(3, axis=2)
    assert set(choose_colour(busy, 0.8, rng)) <= {0.0, 255.0}


def test_no_digit_is_in_two_splits(originals: dict[str, Originals]) -> None:
    indices = [index for some in DIGIT_INDICES.values() for index in some]
    assert sorted(indices) == list(range(1797))
    seen = {split: {digit.tobytes() for digit in some.digits} for split, some in originals.items()}
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]
    assert all(set(some.labels) == set(range(10)) for some in originals.values())


def test_no_photograph_is_in_two_splits(written: Path, originals: dict[str, Originals]) -> None:
    names = [name for some in PHOTOGRAPHS.values() for name in some]
    pixels = {image.tobytes() for some in originals.values() for image in some.photographs.values()}
    assert len(set(names)) == len(names) == len(pixels)
    for split, some in PHOTOGRAPHS.items():
        for image_id in ids_of(written, split):
            annotation = annotation_path(written, image_id).read_text()
            assert sum(f"<image>{name}</image>" in annotation for name in some) == 1


def test_a_complete_data_set_is_not_touched(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dq.data.digits.read_originals", pytest.fail)
    assert write_digits(written, **SMALL) == written


def test_other_arguments_are_refused(written: Path) -> None:
    with pytest.raises(ValueError, match="written with seed 0, not 7: delete it"):
        write_digits(written, **SMALL, seed=7)


@pytest.mark.parametrize("damage", ["annotation", "image", "missing", "stamp"])
def test_a_changed_data_set_is_refused(tmp_path: Path, damage: str) -> None:
    folder = write_digits(tmp_path / "digits", **SMALL)
    if damage == "annotation":
        annotation_path(folder, "test_00000").write_text("<annotation/>")
    elif damage == "image":
        path = image_path(folder, "test_00000")
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "missing":
        image_path(folder, "test_00000").unlink()
    else:
        (folder / STAMP).write_text("[1, 2")
    with pytest.raises(ValueError, match="delete it, or name another folder"):
        write_digits(folder, **SMALL)


def test_a_folder_with_other_content_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds something else"):
        write_digits(tmp_path, **SMALL)
    assert bytes_of(tmp_path) == {"mine.txt": b"precious"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    folder = write_digits(tmp_path / "digits", num_train=1, num_val=1, num_test=1, image_size=60)
    assert json.loads((folder / STAMP).read_text())["num_train"] == 1


@pytest.mark.parametrize(
    ("refusal", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), RuntimeError),
        (OSError(errno.EACCES, "Permission denied"), ValueError),
        (OSError(errno.EIO, "Input/output error"), RuntimeError),
    ],
)
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: BaseException,
    raised: type[BaseException],
) -> None:
    save = Image.Image.save

    def save_some(self: Image.Image, path: Path, **options: Any) -> None:
        if path.stem == "train_00003":
            raise refusal
        save(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", save_some)
    with pytest.raises(raised) as caught:
        write_digits(tmp_path / "digits", **SMALL)
    assert not list(tmp_path.iterdir())
    assert "\n" not in str(caught.value)


def test_two_processes_may_write_one_folder(
    tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "digits"
    rename = Path.rename

    def rename_late(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        write_digits(folder, **SMALL)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_late)
    assert write_digits(folder, **SMALL) == folder
    assert bytes_of(folder) == bytes_of(written)
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_a_folder_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="name a folder you may write to"):
        write_digits(tmp_path / "file" / "digits", **SMALL)


def test_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="name a folder inside it"):
        write_digits(Path(), **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ({"num_val": 0}, "num_val is 0: give each split one image or more"),
        ({"image_size": 59}, "image_size is 59: give 60 to 1024 pixels"),
        ({"seed": -1}, "seed is -1: give 0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(
    tmp_path: Path, argument: dict[str, int], line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        write_digits(tmp_path / "digits", **argument)


@pytest.mark.parametrize("package", ["sklearn.datasets", "skimage"])
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"pip install 'dq-launcher\[demo\]'"):
        write_digits(tmp_path / "digits", **SMALL)
    assert not list(tmp_path.iterdir())


def test_heavy_packages_are_imported_late() -> None:
    code = (
        "import sys, dq.data.digits, dq.data.voc, dq.data.describe, launcher.commands.data\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'skimage', 'mmdet', 'mmcv'}\n"
        "print(*heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""


def test_mmdet_reads_it(written: Path) -> None:
    datasets = pytest.importorskip("mmdet.datasets")
    dataset = datasets.XMLDataset(
        ann_file=str(written / "ImageSets/Main/trainval.txt"),
        img_prefix=str(written),
        classes=CLASSES,
        pipeline=[{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}],
    )
    assert len(dataset) == 8
    image_id = dataset.data_infos[0]["id"]
    boxes = read_boxes(annotation_path(written, image_id))
    item = dataset[0]
    assert item["img"].shape == (96, 96, 3)
    assert item["gt_labels"].tolist() == [CLASSES.index(box.name) for box in boxes]
    assert item["gt_bboxes"].tolist() == [
        [box.xmin - 1, box.ymin - 1, box.xmax - 1, box.ymax - 1] for box in boxes
    ]
