"""``launcher show``: the page of data sections of every kind, with detectors and without."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv import Config
from PIL import Image

from dq.detector.config.read import finish, read_config
from dq.detector.data.class_names import class_list
from dq.detector.model.build import build_model
from launcher.stages import showing
from tests.launcher.conftest import Launch, on_ranks
from tests.launcher.view.kinds import NAMES, write_coco, write_images

# The tiny config's data in all forms that sections have.
NESTED = """
_base_ = [{base!r}]
folder = {root!r} + '/ImageSets/Main/'
leaf = dict(type='VOCFolderDataset', classes={{{{_base_.classes}}}}, img_prefix={root!r})
few = dict(leaf, ann_file=folder + 'val.txt', pipeline={{{{_base_.train_pipeline}}}})
many = dict(leaf, ann_file=folder + 'train.txt', pipeline={{{{_base_.train_pipeline}}}})
tested = dict(leaf, pipeline={{{{_base_.test_pipeline}}}})
data = dict(
    train=dict(_delete_=True, type='ConcatDataset', datasets=[many, dict(
        type='RepeatDataset', times=3, dataset=dict(
            type='ClassBalancedDataset', oversample_thr=0.01, dataset=[few]))]),
    val=dict(_delete_=True, type='RepeatDataset', times=3, dataset=dict(
        tested, ann_file=[folder + 'val.txt', folder + 'test.txt'])),
    test=[dict(tested, ann_file=folder + 'test.txt'), dict(type='ConcatDataset', datasets=[
        dict(tested, ann_file=folder + 'val.txt')])])
"""
COCO = """
_base_ = [{base!r}]
def of(pipeline):
    return dict(_delete_=True, type='CocoDataset', classes={classes!r}, ann_file={file!r},
                img_prefix={images!r}, pipeline=pipeline, filter_empty_gt=False)
model = dict(bbox_head=dict(num_classes={number}))
evaluation = dict(metric='bbox')
data = dict(
    train=of({{{{_base_.train_pipeline}}}}), val=of({{{{_base_.test_pipeline}}}}),
    test=of({{{{_base_.test_pipeline}}}}))
"""
MOSAIC = """
_base_ = [{base!r}]
data = dict(train=dict(_delete_=True, type='MultiImageMixDataset', dataset=dict(
    type='VOCFolderDataset', classes={{{{_base_.classes}}}}, img_prefix={root!r},
    ann_file={root!r} + '/ImageSets/Main/train.txt', pipeline=[
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]),
    pipeline=[dict(type='Mosaic', img_scale=(48, 48)), dict(type='RandomFlip', flip_ratio=0.5),
              dict(type='Resize', img_scale=(96, 96), keep_ratio=False),
              dict(type='DefaultFormatBundle'),
              dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])]))
"""


def with_weights(config: Path, path: Path, seed: int) -> Path:
    """Write a checkpoint of the config's detector, which was not trained."""
    content = finish(read_config(str(config), []))
    torch.manual_seed(seed)
    detector = build_model(content, class_list(content).names, initialise=True)
    torch.save({"state_dict": detector.state_dict(), "meta": {}}, path)
    return path


def shown(folder: Path) -> dict[str, Any]:
    """Return the page's numbers; all its pictures must be whole, and nothing else be loaded."""
    page = (folder / "index.html").read_text()
    names = {html.unescape(name) for name in re.findall(r'src="([^"]+)"', page)}
    assert names == {path.name for path in folder.glob("*.png")}
    for name in names:
        with Image.open(folder / name) as image:
            assert image.convert("RGB").getextrema() != ((255, 255),) * 3
    for place in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert "/" not in place
    assert "<script" not in page
    found: dict[str, Any] = json.loads((folder / "show.json").read_text())
    return found


def detectors_in(found: dict[str, Any]) -> list[str]:
    (names,) = {tuple(each["name"] for each in one["detectors"]) for one in found["shown"]}
    return list(names)


def test_a_split_and_its_anchors(launch: Launch, config: Path, tmp_path: Path) -> None:
    code, out, err = launch("show", config, "--number", 3, "--out", tmp_path / "p")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == str(tmp_path / "p/index.html")
    found = shown(tmp_path / "p")
    assert (found["images"], len(found["shown"]), len(found["classes"])) == (24, 3, 10)
    assert sum(each["boxes"] for each in found["classes"]) == found["anchors"][0]["boxes"]
    assert {p.name for p in (tmp_path / "p").glob("*_001.png")} == {
        "image_001.png", "input_001.png"
    }  # fmt: skip
    page = (tmp_path / "p/index.html").read_text()
    assert "What the detector is given" in page
    assert "labels" not in Path(found["shown"][0]["name"]).name
    # Fewer pictures the next time: none of the former ones are left.
    assert launch("show", config, "--number", 1, "--split", "val", "--out", tmp_path / "p")[0] == 0
    assert len(shown(tmp_path / "p")["shown"]) == 1
    assert not list((tmp_path / "p").glob(".writer*"))


def test_the_page_is_in_the_work_dir_by_default(
    launch: Launch, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("show", config, "--number", 1, "--cfg-options")
    assert launch(*words, f"work_dir={tmp_path}/w")[0] == 0
    assert shown(tmp_path / "w/show/train")
    assert launch(*words, "model.bbox_head.reg_decoded_bbox=False")[0] == 0
    assert shown(tmp_path / "runs/tiny/show/train")


@pytest.mark.slow
def test_sections_that_are_nested(
    launch: Launch, config: Path, digits: Path, tmp_path: Path
) -> None:
    path = tmp_path / "nested.py"
    path.write_text(NESTED.format(base=str(config), root=str(digits)))
    numbers = {}
    for split in ("train", "val", "test"):
        code, _, err = launch(
            "show", path, "--split", split, "--number", 4, "--out", tmp_path / split
        )
        assert code == 0, err
        numbers[split] = shown(tmp_path / split)
    # Each image counts once, however often it is repeated.
    sizes = {name: len((digits / f"ImageSets/Main/{name}.txt").read_text().split())
             for name in ("train", "val", "test")}  # fmt: skip
    assert numbers["train"]["images"] == sizes["train"] + sizes["val"]
    assert numbers["val"]["images"] == numbers["test"]["images"] == sizes["val"] + sizes["test"]
    names = [each["name"] for each in numbers["train"]["shown"]]
    assert len(set(names)) == len(names)


def test_images_that_are_mixed(launch: Launch, config: Path, digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "mosaic.py"
    path.write_text(MOSAIC.format(base=str(config), root=str(digits)))
    for folder in ("a", "b"):
        words = ("--number", 2, "--seed", 3, "--out", tmp_path / folder)
        code, _, err = launch("show", path, *words)
        assert code == 0, err
        assert shown(tmp_path / folder)["anchors"][0]["boxes"] > 0
    # Of the same seed the same pictures.
    for name in ("input_001.png", "input_002.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_pipeline_that_fails_is_one_line(
    launch: Launch, config: Path, digits: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mosaic.py"
    text = MOSAIC.format(base=str(config), root=str(digits))
    path.write_text(text.replace("dict(type='RandomFlip', flip_ratio=0.5),", ""))
    code, out, err = launch("show", path, "--number", 2, "--out", tmp_path / "p")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "the pipeline fails on each image, first with no sample of " in err
    assert "KeyError" in err
    assert not (tmp_path / "p/index.html").exists()


@pytest.mark.parametrize("compared", [False, True])
def test_boxes_that_are_missing_beside_the_anchors_are_counted(
    launch: Launch,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    compared: bool,
) -> None:
    """Also with a checkpoint, where no samples of the pipeline are drawn."""
    made = showing.seen

    def fails_on_some(dataset: Any, index: int, **given: Any) -> Any:
        if index % 4 == 1:
            raise KeyError("of a test")
        return made(dataset, index, **given)

    monkeypatch.setattr(showing, "seen", fails_on_some)
    words = ["show", config, "--number", 2, "--out", tmp_path / "p"]
    if compared:
        words += ["--checkpoint", with_weights(config, tmp_path / "x.pth", 0)]
    code, _, err = launch(*words)
    assert code == 0, err
    said = "The boxes of 6 of 24 images are not compared, because the pipeline fails on them; first"
    assert said in (tmp_path / "p/index.html").read_text()
    assert [r.levelname for r in caplog.records if said in r.getMessage()] == ["WARNING"]


@pytest.mark.slow
def test_images_and_names_of_every_kind(launch: Launch, config: Path, tmp_path: Path) -> None:
    sizes = write_images(tmp_path / "images")
    (tmp_path / "images/broken.png").write_bytes(b"no image")
    file = write_coco(tmp_path, {**sizes, "broken.png": (50, 50)})
    path = tmp_path / "kinds.py"
    given = {"base": str(config), "file": str(file), "images": f"{tmp_path}/images/"}
    path.write_text(COCO.format(**given, classes=NAMES, number=3))
    checkpoint = with_weights(path, tmp_path / "x.pth", 0)
    for number, words in enumerate(((), ("--checkpoint", checkpoint, "--score", 0.05))):
        folder = tmp_path / f"p{number}"
        code, _, err = launch("show", path, "--split", "val", "--out", folder, *words)
        assert code == 0, err
        found = shown(folder)
        assert len(found["shown"]) == len(sizes) + 1
        broken = [each for each in found["shown"] if each["error"]]
        assert [Path(each["name"]).name for each in broken] == ["broken.png"]
        # Every third image, and the one whose boxes are smaller than a pixel.
        assert found["without_boxes"] == 4
        page = (folder / "index.html").read_text()
        assert "<b>bold" not in page
        for name in NAMES:
            assert html.escape(name) in page
        assert "cannot be read" in page
    assert all(each["detectors"] for each in found["shown"] if not each["error"])


@pytest.mark.slow
def test_two_checkpoints_beside_each_other(launch: Launch, config: Path, tmp_path: Path) -> None:
    words = ["show", config, "--split", "test", "--score", "0.0", "--number", "4"]
    one, other = (with_weights(config, tmp_path / f"{seed}.pth", seed) for seed in (0, 1))
    code, _, err = launch(*words, "--checkpoint", one, other, "--out", tmp_path / "p")
    assert code == 0, err
    found = shown(tmp_path / "p")
    assert detectors_in(found) == ["float (0.pth)", "float (1.pth)"]
    page = (tmp_path / "p/index.html").read_text()
    assert "only here (thick)" in page
    assert "What the detector is given" not in page
    # The same detector twice differs nowhere.
    code, _, err = launch(*words, "--checkpoint", one, one, "--out", tmp_path / "p")
    assert code == 0, err
    assert "only here (thick)" not in (tmp_path / "p/index.html").read_text()
    assert detectors_in(shown(tmp_path / "p")) == ["float (0.pth), first", "float (0.pth), second"]


@pytest.mark.slow
def test_a_quantized_checkpoint_is_shown_as_such(
    launch: Launch, config: Path, untrained: Path, tmp_path: Path
) -> None:
    given = ("--work-dir", tmp_path / "w", "--wandb", "disabled", "--cfg-options")
    few = ("tracking.quantizer_images=0", "tracking.prediction_images=0")
    code, _, err = launch("calibrate", config, "--checkpoint", untrained, *given, *few)
    assert code == 0, err
    other = tmp_path / "w/calibrated/calibrated.pth"
    words = ("--checkpoint", untrained, other, "--split", "test", "--score", "0.01")
    code, _, err = launch("show", config, *words, "--number", 2, "--out", tmp_path / "p")
    assert code == 0, err
    found = shown(tmp_path / "p")
    assert detectors_in(found) == ["float (float.pth)", "int8 (calibrated.pth)"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--number", "0"), "--number 0 draws nothing; give a number from 1 up"),
        (("--score", "1.5"), "--score 1.5 is not a score"),
        (("--score", "nan"), "--score nan is not a score"),
        (("--checkpoint", "a.pth", "b.pth", "c.pth"), "--checkpoint has 3 files; give one, or two"),
        (("--checkpoint", "nowhere.pth"), "nowhere.pth"),
        (("--cfg-options", "data.train.dataset.ann_file=nowhere.txt"), "nowhere.txt"),
        (("--cfg-options", "data.val="), "data.val must be a dict"),
        (
            ("--cfg-options", "model.bbox_head.num_classes=3"),
            "num_classes is 3 but the data",
        ),
        (("--out", "full"), "full has other files in it (mine.txt); give a new folder with --out"),
        (("--out", "file"), "--out file is a file; give a folder"),
        (("--device", "tpu"), "--device tpu is not known"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_drawn(
    launch: Launch,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    for name in ("full/mine.txt", "file"):
        (tmp_path / name).write_text("mine")
    split = "val" if "data.val=" in words else "train"
    code, out, err = launch("show", config, "--split", split, "--out", "p", *words)
    assert (code, out) == (2, "")
    assert line in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.rglob("*.png"))
    assert not list(tmp_path.rglob("index.html"))


@pytest.mark.slow
def test_on_two_ranks_one_draws(config: Path, tmp_path: Path) -> None:
    done = on_ranks(2, "show", config, "--number", 2, "--out", tmp_path / "p")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(tmp_path / "p/index.html")) == 1
    assert shown(tmp_path / "p")


def test_the_config_of_a_detector_without_anchors(
    launch: Launch, config: Path, tmp_path: Path
) -> None:
    path = tmp_path / "fcos.py"
    head = {"_delete_": True, "type": "FCOSHead", "num_classes": 10, "in_channels": 16,
            "strides": [8, 16, 32], "regress_ranges": ((-1, 32), (32, 64), (64, 1e8))}  # fmt: skip
    text = f"_base_ = [{str(config)!r}]\nmodel = dict(bbox_head={head!r})\n"
    path.write_text(text)
    assert Config.fromfile(str(path)).model.bbox_head.type == "FCOSHead"
    code, out, err = launch("show", path, "--number", 1, "--out", tmp_path / "p")
    assert code == 0, err
    assert shown(tmp_path / "p")["anchors"] == []
    assert "No head of this detector has anchors" in (tmp_path / "p/index.html").read_text()
    assert "bbox_head" not in out
