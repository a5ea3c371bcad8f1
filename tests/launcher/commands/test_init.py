"""`launcher init` and `launcher data convert`, as a stranger uses them from another folder."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from dq.detector.config.read import read_config
from dq.detector.data.datasets import dataset_of
from dq.shipped import detectors
from launcher.plan import read_plan
from tests.data import folders
from tests.data.folders import CLASSES, LAYOUTS, scenes
from tests.launcher.conftest import Launch

NUMBER = sum(len(scene.boxes) for scene in scenes())


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stranger's working directory; the photographs are elsewhere."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_becomes_a_config(
    launch: Launch, here: Path, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "my photos"
    LAYOUTS[layout][0](data)
    before = files(data)
    code, out, err = launch("init", "../my photos", "--size", 64)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("../my photos: ")
    assert lines[0].endswith(f", 10 images, {NUMBER} boxes of 3 classes")
    split = "7 train, 3 val (as in the folder)" if LAYOUTS[layout][2] else "8 train, 2 val (made"
    assert lines[1].startswith(f"splits: {split}")
    assert lines[-1] == (
        "wrote my_photos_ssd_mobilenet.py; next: launcher run my_photos_ssd_mobilenet.py"
    )
    assert files(data) == before
    monkeypatch.chdir(tmp_path)  # The config works from any folder.
    config = here / "my_photos_ssd_mobilenet.py"
    asked = argparse.Namespace(config=str(config), cfg_options=[], seed=None)
    plan = read_plan(asked)
    assert plan.settings.recipe.weight.bits == 8
    assert set(plan.config.classes) == set(CLASSES)
    assert plan.config.model.bbox_head.num_classes == 3
    parts = {"train": plan.config.data.train.dataset, "val": plan.config.data.val}
    for name, part in parts.items():
        content = json.loads(Path(part.ann_file).read_text(encoding="utf-8"))
        named = [Path(part.img_prefix, image["file_name"]) for image in content["images"]]
        assert all(path.is_file() for path in named), name
    first = dataset_of(plan.config, "train")[0]
    assert tuple(first["img"].data.shape) == (3, 64, 64)


@pytest.mark.parametrize("detector", detectors())
def test_every_detector_is_filled_in(launch: Launch, here: Path, detector: str) -> None:
    folders.yolo_flat(here / "photos")
    words = ("init", "photos", "--detector", detector, "--size", 96, "--out", "deep/own.py")
    code, _, err = launch(*words)
    assert (code, err) == (0, "")
    text = (here / "deep/own.py").read_text(encoding="utf-8")
    assert "SET_ME" not in text
    assert max(len(line) for line in text.splitlines() if str(here) not in line) <= 100
    assert f"# Written by `launcher init photos --detector {detector}" in text
    config = read_config(here / "deep/own.py")
    assert config.image_size == (96, 96)
    head = config.model.bbox_head
    assert head.num_classes == 3
    if "anchor_generator" in head:
        sizes = head.anchor_generator.base_sizes
        assert [len(level) for level in sizes] == [4] * 5
        # Fitted to boxes of 12 to 28 pixels of 96 and 64.
        assert all(8 <= side <= 48 for size in sizes[0] for side in size)
    assert (here / "deep/own_annotations/train.json").is_file()


def test_nothing_is_overwritten_unless_forced(launch: Launch, here: Path) -> None:
    folders.voc(here / "photos")
    words = ("init", "photos", "--size", 64, "--out", "own.py")
    assert launch(*words)[0] == 0
    before = files(here)
    code, out, err = launch(*words)
    assert (code, out) == (2, "")
    assert err == "error: own.py exists; give --force to replace it, or another name\n"
    assert files(here) == before
    (here / "own.py").unlink()  # Someone may have changed the lists.
    code, _, err = launch(*words)
    assert (code, "own_annotations/train.json exists; give --force" in err) == (2, True)
    assert not (here / "own.py").exists()
    assert launch(*words, "--force")[0] == 0
    # Its own files in the folder of the photographs are no labels.
    code, out, _ = launch("init", ".", "--size", 64, "--out", "again.py")
    assert code == 0
    assert out.startswith(f".: Pascal VOC, 10 images, {NUMBER} boxes")
    assert "second format" not in out


def test_the_same_folder_gives_the_same_files(launch: Launch, here: Path, tmp_path: Path) -> None:
    texts = []
    for place in ("a", "b"):
        folders.labelme_beside(tmp_path / place / "photos")
        launch("init", tmp_path / place / "photos", "--out", f"{place}/own.py")
        own = (here / place / "own.py").read_text(encoding="utf-8").splitlines()
        kept = [line for line in own if "/" not in line]
        parts = [here / place / f"own_annotations/{name}.json" for name in ("train", "val")]
        texts.append((kept, [path.read_bytes() for path in parts]))
    assert texts[0] == texts[1]


MISTAKES = {
    "no folder": (("init", "nowhere"), "nowhere is not a folder"),
    "no labels": (("init", "alone"), r"alone has 1 image and no annotations \("),
    "a detector": (("init", "photos", "--detector", "ssd_mobilnet"), "did you mean ssd_mobilenet?"),
    "a size": (("init", "photos", "--size", 100), "--size 100 is not a multiple of 32"),
    "a name": (("init", "photos", "--out", "own"), "--out own is not the name of a config"),
    "a format": (("init", "photos", "--format", "vox"), "--format vox is not known; did you mean"),
    "another format": (("init", "photos", "--format", "coco"), r"no annotations \(COCO\)"),
    "no backbone": (("init", "photos", "--backbone", "b.pth"), "--backbone b.pth does not exist"),
    "a broken one": (("init", "photos", "--backbone", "photos/classes.txt"), "cannot be read as"),
    "no place": (("init", "photos", "--out", "file/own.py"), "cannot be written"),
    "convert": (("data", "convert", "nowhere", "dst"), "nowhere is not a folder"),
    "a class is missing": (
        ("data", "convert", "photos", "dst", "--classes", "red thing", "grün", "blu"),
        "--classes leaves out blue, which",
    ),
    "a class is there twice": (
        ("data", "convert", "photos", "dst", "--classes", "blue", "blue"),
        "--classes names blue more than once",
    ),
    "convert to": (("data", "convert", "photos", "file"), "cannot be written"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(launch: Launch, here: Path, mistake: str) -> None:
    folders.yolo_flat(here / "photos")
    folders.paint(scenes()[0], here / "alone/a.jpg")
    folders.put(here / "file", "")
    before = files(here)
    words, said = MISTAKES[mistake]
    code, _, err = launch(*words)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(said, err)
    assert files(here) == before


def test_names_in_a_config_are_as_they_are(launch: Launch, here: Path) -> None:
    """mmcv and mmdet replace some braces in a config."""
    folder = here / "{{ fileDirname }}\n%d"
    folders.yolo_flat(folder)
    names = ("{{ fileDirname }}", "{{ _base_.x }}", 'it\'s \\ "q" | %s')
    folders.put(folder / "classes.txt", "\n".join(names))
    code, _, err = launch("init", folder, "--size", 64, "--out", "own.py")
    assert (code, err) == (0, "")
    config = read_config(here / "own.py")
    assert config.classes == names
    assert config.data_root == str(folder)
    folders.put(folder / "classes.txt", "${data_root}\nb\nc")
    code, _, err = launch("init", folder, "--size", 64, "--out", "other.py")
    assert (code, "a config replaces ${...} in ${data_root}" in err) == (2, True)
    assert not (here / "other.py").exists()


NO_BOXES = {
    "too small": ("0 0.5 0.5 0.001 0.001\n", "10 boxes of less than a pixel, left out (first"),
    "outside": ("0 5 5 1 1\n", "10 boxes outside their image, left out (first"),
}


@pytest.mark.parametrize("command", [("init",), ("data", "convert")])
@pytest.mark.parametrize("fault", NO_BOXES)
def test_a_folder_whose_boxes_are_all_left_out_says_why(
    launch: Launch, here: Path, fault: str, command: tuple[str, ...]
) -> None:
    text, why = NO_BOXES[fault]
    folders.yolo_flat(here / "photos")
    for path in (here / "photos").glob("photo*.txt"):
        path.write_text(text)
    before = files(here)
    code, _, err = launch(*command, "photos", *(["dst"] if "data" in command else []))
    assert code == 2
    assert err.startswith(f"error: photos has no box to train on: {why}")
    assert files(here) == before


def test_difficult_boxes_alone_cannot_be_trained_on(launch: Launch, here: Path) -> None:
    folders.voc(here / "photos")
    for path in (here / "photos/Annotations").iterdir():
        path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    code, _, err = launch("init", "photos")
    assert (code, "all are difficult or crowds; correct" in err) == (2, True)


def test_labels_are_converted(launch: Launch, here: Path) -> None:
    folders.yolo_by_kind(here / "photos")
    code, out, err = launch("data", "convert", "photos", "labels", "--to", "coco")
    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == [
        "wrote labels/instances_train.json",
        "wrote labels/instances_val.json",
    ]
    assert launch("data", "convert", "photos", "labels")[0] == 2
    assert launch("data", "convert", "photos", "labels", "--force")[0] == 0
    code, out, _ = launch("init", "labels", "--size", 64)
    assert code == 0
    assert out.startswith(f"labels: COCO, 10 images, {NUMBER} boxes of 3 classes\nsplits: 7 train")


def test_categories_are_written_in_the_order_of_a_trained_detector(
    launch: Launch, here: Path
) -> None:
    folders.yolo_flat(here / "photos")

    def converted(*words: str) -> tuple[list[str], dict[str, int]]:
        code, _, err = launch("data", "convert", "photos", "labels", "--force", *words)
        assert (code, err) == (0, "")
        content = json.loads((here / "labels/instances_all.json").read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        counts = Counter(names[a["category_id"]] for a in content["annotations"])
        return list(names.values()), dict(counts)

    usual, boxes = converted()
    order = [*reversed(usual), "none of them"]
    assert converted("--classes", *order) == (order, boxes)


def test_a_backbone_fits_or_is_refused(launch: Launch, here: Path, shared: Path) -> None:
    folders.yolo_flat(here / "photos")
    whole, alone = (
        shared / f"weights/{n}.pth" for n in ("yolox_nano_coco", "mobilenet_v2_imagenet")
    )
    code, out, err = launch("init", "photos", "--backbone", alone, "--out", "a.py")
    assert (code, err) == (0, "")
    assert "checkpoint from" not in out
    assert read_config("a.py").model.backbone.init_cfg.checkpoint == str(alone)
    code, _, err = launch("init", "photos", "--backbone", whole, "--out", "b.py")
    assert code == 2
    assert "holds the weights of another network" in err
    words = ("--detector", "yolox_nano", "--backbone", whole, "--out", "c.py")
    assert launch("init", "photos", *words)[0] == 0
    assert read_config("c.py").model.backbone.init_cfg.prefix == "backbone"


TINY = (
    *("data.train.times=1", "runner.max_epochs=1", "lr_config.warmup_iters=1"),
    *("data.samples_per_gpu=4", "quant.schedule.calibration_batches=1"),
)


@pytest.mark.slow
@pytest.mark.parametrize("detector", detectors())
def test_every_detector_trains_also_on_images_without_objects(
    launch: Launch, here: Path, detector: str
) -> None:
    folders.yolo_flat(here / "photos")
    for number in range(4):
        (here / f"photos/photo {number}.txt").unlink()
    words = ("--detector", detector, "--size", 64, "--out", "own.py")
    assert launch("init", "photos", *words)[0] == 0
    code, _, err = launch("train", "own.py", "--wandb", "disabled", "--cfg-options", *TINY)
    assert code == 0, err
    assert (here / "runs/own/float/float.pth").is_file()


@pytest.mark.slow
def test_three_commands_from_photographs_to_an_int8_file(
    launch: Launch, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders.voc(here / "photos")
    assert launch("init", "photos", "--size", 64, "--out", "own.py")[0] == 0
    # The statistics of the batch norms need some steps before a detector can be calibrated.
    longer = ("data.train.times=8", "data.samples_per_gpu=2")
    # Fewer steps than the recipe would take, which is said.
    short = "quant.passes=0.5"
    code, out, err = launch(
        *("run", "own.py", "--wandb", "disabled", "--cfg-options", *TINY, *longer, short)
    )
    assert code == 0, err
    assert "| own " in out
    assert "steps are few for int8" in caplog.text
    code, out, err = launch(
        "export", "own.py", "--checkpoint", "runs/own/qat/qat.pth", "--no-bench", "--json"
    )
    assert code == 0, err
    written = [here / name for name in json.loads(out)["files"]]
    assert written[0] in list((here / "runs/own/export").glob("*.onnx"))
    assert all(path.is_file() for path in written)
