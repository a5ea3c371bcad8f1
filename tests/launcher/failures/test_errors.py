"""Mistakes of the user: one clear line with the fix, exit code 2, nothing half-written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.launcher.conftest import Launch


def only_error(result: tuple[int, str, str]) -> str:
    """Return the one error line of a launch that failed by a mistake of the user."""
    code, _, err = result
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, err
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def changed(config: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a config that inherits the tiny one, with further lines or with words replaced."""

    def write(text: str) -> Path:
        path = tmp_path / "changed.py"
        path.write_text(f"_base_ = [{str(config)!r}]\n{text}\n")
        return path

    return write


@pytest.fixture
def own_digits(digits: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may break."""
    return Path(shutil.copytree(digits, tmp_path / "own"))


def test_missing_config_names_the_nearest_file(launch: Launch, config: Path) -> None:
    error = only_error(launch("train", config.with_name("tinny.py")))
    assert f"did you mean {config}?" in error


@pytest.mark.parametrize("command", ["eval", "calibrate", "quantize", "qat", "analyze"])
@pytest.mark.parametrize("split", ["train.dataset", "val", "test"])
def test_an_unknown_scope_of_a_data_set(
    launch: Launch, config: Path, float_checkpoint: Path, command: str, split: str
) -> None:
    more = ("--max-drop", 1) if command == "quantize" else ()
    change = f"data.{split}.type=mmfoo.CocoDataset"
    error = only_error(
        launch(command, config, "--checkpoint", float_checkpoint, *more, "--cfg-options", change)
    )
    assert f"data.{split}.type is 'mmfoo.CocoDataset'" in error
    assert "did you mean CocoDataset?" in error


def test_config_with_a_syntax_error(launch: Launch, changed: Callable[..., Path]) -> None:
    assert "changed.py" in only_error(launch("train", changed("model = dict(")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimzer = dict(type='SGD')", "did you mean optimizer?"),
        ("quant = dict(schedule=dict(calibration_batch=3))", "did you mean calibration_batches?"),
        ("quant = dict(wieght=dict(bits=4))", "did you mean weight?"),
        ("quant = dict(weight=dict(bits=1))", "bits is 1"),
        ("quant = dict(observer='min_maks')", "observer 'min_maks' does not exist"),
        ("quantize = 'calibrate'", "use False, True (or 'training') or 'calibration'"),
        ("model = dict(type='SingleStagDetector')", "did you mean SingleStageDetector?"),
        ("model = dict(backbone=dict(dept=18))", "dept"),
        ("model = dict(bbox_head=dict(num_classes=9))", "num_classes is 9"),
        ("optimizer = dict(type='SGDD')", "optimizer.type is 'SGDD'"),
        ("data = dict(test=dict(type='mmfoo.CocoDataset'))", "data.test.type is 'mmfoo.CocoDa"),
        ("custom_hooks = [dict(type='EmaHook')]", "custom_hooks[0].type is 'EmaHook'"),
        ("runner = dict(type='EpochRunner')", "did you mean EpochBasedRunner?"),
        ("data = dict(train=dict(dataset=dict(type='VOCFolderDatset')))", "VOCFolderDatset"),
        ("lr_config = dict(policy='Cosin')", "Cosin"),
        ("custom_hooks = [dict(type='NoHook')]", "NoHook"),
        ("runner = dict(type='EpochRunner')", "EpochBasedRunner"),
    ],
)
def test_config_with_a_typo(
    launch: Launch, changed: Callable[..., Path], tmp_path: Path, text: str, message: str
) -> None:
    path = changed(text)
    error = only_error(launch("train", path, "--work-dir", tmp_path / "work"))
    assert message in error
    assert not list(tmp_path.glob("work/**/*.pth"))


def test_override_with_a_typo_names_the_nearest_key(launch: Launch, config: Path) -> None:
    error = only_error(launch("train", config, "--cfg-options", "model.bbox_hed.num_classes=3"))
    assert "did you mean bbox_head?" in error


def test_override_without_value(launch: Launch, config: Path) -> None:
    assert "key=value" in only_error(launch("train", config, "--cfg-options", "optimizer.lr"))


def test_unknown_argument(launch: Launch, config: Path) -> None:
    assert "--chekpoint" in only_error(launch("eval", config, "--checkpoint", "x", "--chekpoint"))


def test_missing_checkpoint(launch: Launch, config: Path, tmp_path: Path) -> None:
    where = ("--work-dir", tmp_path / "work")
    for command in ("calibrate", "qat", "eval"):
        error = only_error(launch(command, config, "--checkpoint", tmp_path / "no.pth", *where))
        assert "no.pth does not exist" in error


def test_truncated_checkpoint(
    launch: Launch, config: Path, untrained: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.pth"
    broken.write_bytes(untrained.read_bytes()[:-2000])
    where = ("--work-dir", tmp_path / "work")
    error = only_error(launch("eval", config, "--checkpoint", broken, *where))
    assert re.search("damaged|cut short", error)


def test_checkpoint_of_another_model_names_the_first_mismatches(
    launch: Launch, changed: Callable[..., Path], untrained: Path, tmp_path: Path
) -> None:
    path = changed(
        "model = dict(neck=dict(out_channels=24), bbox_head=dict(in_channels=(24, 24, 24)))"
    )
    where = ("--work-dir", tmp_path / "work")
    error = only_error(launch("calibrate", path, "--checkpoint", untrained, *where))
    assert "checkpoint of another model" in error
    assert "neck.lateral_convs.0.conv.weight" in error
    assert not list(tmp_path.glob("work/**/*.pth"))


def test_checkpoint_that_would_run_code_is_refused(
    launch: Launch, config: Path, tmp_path: Path
) -> None:
    path = tmp_path / "code.pth"
    torch.save({"state_dict": {}, "path": Path("x")}, path)
    where = ("--work-dir", tmp_path / "work")
    error = only_error(launch("eval", config, "--checkpoint", path, *where))
    assert "--trust-checkpoint" in error


@pytest.mark.slow
@pytest.mark.parametrize("way", ["load_from", "--resume"])
def test_training_takes_a_pickle_where_it_is_trusted(
    launch: Launch, config: Path, untrained: Path, tmp_path: Path, way: str
) -> None:
    path = tmp_path / "code.pth"
    torch.save({**torch.load(untrained, weights_only=True), "path": Path("x")}, path)
    words = ("train", config, "--work-dir", tmp_path / "work")
    words += ("--resume", path) if way == "--resume" else ("--cfg-options", f"load_from={path}")
    assert "--trust-checkpoint" in only_error(launch(*words))
    assert not list(tmp_path.glob("work/**/*.pth"))
    code, _, err = launch(*words, "--trust-checkpoint")
    if way == "load_from":
        assert code == 0, err
    else:  # It is read, but has no optimizer state.
        assert "no optimizer's state" in err


def test_data_folder_that_does_not_exist(launch: Launch, config: Path, tmp_path: Path) -> None:
    options = ("--cfg-options", f"data_root={tmp_path / 'nowhere'}")
    where = ("--work-dir", tmp_path / "work")
    error = only_error(launch("train", config, *where, *options))
    assert "nowhere" in error
    assert "data_root" in error


def test_data_folder_without_images(
    launch: Launch, config: Path, own_digits: Path, tmp_path: Path
) -> None:
    shutil.rmtree(own_digits / "JPEGImages")
    options = ("--cfg-options", f"data_root={own_digits}")
    error = only_error(launch("train", config, "--work-dir", tmp_path / "work", *options))
    assert "24 of 24 images missing" in error


def first_annotation(folder: Path, split: str = "train") -> Path:
    name = (folder / "ImageSets/Main" / f"{split}.txt").read_text().split()[0]
    return folder / "Annotations" / f"{name}.xml"


def test_boxes_of_a_class_that_is_not_asked_for_are_named_and_left_out(
    launch: Launch, config: Path, own_digits: Path, tmp_path: Path
) -> None:
    path = first_annotation(own_digits)
    path.write_text(re.sub("<name>.*?</name>", "<name>eleven</name>", path.read_text(), count=1))
    options = ("--cfg-options", f"data_root={own_digits}")
    code, out, err = launch("train", config, "--work-dir", tmp_path / "work", *options)
    assert code == 0, err
    lines = [line for line in out.splitlines() if "other class" in line]
    assert len(lines) == 1
    assert "1 box of 1 other class" in lines[0]
    assert "(eleven 1)" in lines[0]


def test_box_without_area_is_counted_skipped_and_said_once(
    launch: Launch, config: Path, own_digits: Path, tmp_path: Path
) -> None:
    path = first_annotation(own_digits)
    text = re.sub("<xmax>.*?</xmax>", "<xmax>7</xmax>", path.read_text(), count=1)
    path.write_text(re.sub("<xmin>.*?</xmin>", "<xmin>7</xmin>", text, count=1))
    options = ("--cfg-options", f"data_root={own_digits}")
    code, out, err = launch("train", config, "--work-dir", tmp_path / "work", *options)
    assert code == 0, err
    lines = [line for line in out.splitlines() if "without area" in line]
    assert len(lines) == 1
    assert "1 box without area in 1 image" in lines[0]


def test_unreadable_image_is_named(
    launch: Launch, config: Path, own_digits: Path, tmp_path: Path
) -> None:
    name = first_annotation(own_digits).stem
    (own_digits / "JPEGImages" / f"{name}.jpg").write_bytes(b"no picture")
    for workers in (0, 1):
        options = (
            f"data_root={own_digits}",
            f"data.workers_per_gpu={workers}",
            "guards.max_bad_images=0",
        )
        error = only_error(
            launch("train", config, "--work-dir", tmp_path / "work", "--cfg-options", *options)
        )
        assert f"{name}.jpg" in error


def test_unwritable_work_dir(launch: Launch, config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = only_error(launch("train", config, "--work-dir", tmp_path / "file" / "work"))
    assert "--work-dir" in error


def test_quantize_flag_without_checkpoint(launch: Launch, changed: Callable[..., Path]) -> None:
    error = only_error(launch(changed("quantize = True")))
    assert "load_from" in error
