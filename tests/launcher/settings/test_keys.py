"""Keys of a config act as in mmdet, also if they are given on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dq.dist.files.checkpoint import load_checkpoint
from tests.launcher.conftest import Launch, on_ranks

Write = Callable[..., Path]
PRETRAINED = "_delete_=True, type='Pretrained'"


@pytest.fixture
def changed(config: Path, tmp_path: Path) -> Write:
    """Return a function that writes a config; its score threshold makes evaluations fast."""

    def write(text: str, name: str = "changed") -> Path:
        path = tmp_path / f"{name}.py"
        few = "model = dict(test_cfg=dict(score_thr=0.9))"
        path.write_text(f"_base_ = [{str(config)!r}]\n{few}\n{text}\n")
        return path

    return write


def only_error(launched: tuple[int, str, str]) -> str:
    code, _, err = launched
    assert code == 2, err
    (line,) = err.strip().splitlines()
    return line


@pytest.mark.slow
def test_flag_and_checkpoint_from_the_command_line(
    launch: Launch, changed: Write, untrained: Path, tmp_path: Path
) -> None:
    path = changed("load_from = 'another.pth'")
    results = []
    for number, words in enumerate((
        [path, "--cfg-options", "quantize=calibration", f"load_from={untrained}"],
        ["--checkpoint", untrained, "--cfg-options", "quantize=calibration", path],
    )):  # fmt: skip
        work = tmp_path / f"work{number}"
        code, out, err = launch(*words, "--work-dir", work)
        assert code == 0, err + out
        assert not (work / "float").exists()
        results.append(load_checkpoint(work / "calibrated/calibrated.pth"))
    digests = {content["quantization"]["digest"] for content in results}
    assert len(digests) == 1


def test_flag_from_the_command_line_decides_before_anything_else(
    launch: Launch, changed: Write, untrained: Path, tmp_path: Path
) -> None:
    path = changed("quantize = 'calibration'")
    where = ("--work-dir", tmp_path / "work")
    assert "load_from" in only_error(launch(path, *where))
    error = only_error(launch(path, "--checkpoint", untrained, "--cfg-options", "quantize=False"))
    assert "--checkpoint is not for `train`, which quantize=False" in error
    assert "quantize=calibration" in error
    error = only_error(launch(path, "--resume", "--checkpoint", untrained))
    assert "--resume is not for `calibrate`" in error
    error = only_error(launch(path, "--cfg-options", "quantize=always"))
    assert "quantize is 'always'" in error
    error = only_error(launch("train", path, "--gpu-ids", "0", *where))
    assert "CUDA_VISIBLE_DEVICES" in error


@pytest.mark.slow
def test_resume_from_goes_on_exactly_with_average_and_folder_of_checkpoints(
    launch: Launch, changed: Write, tmp_path: Path
) -> None:
    text = (
        "runner = dict(max_epochs=2)\n"
        "custom_hooks = [dict(type='ExpMomentumEMAHook', momentum=0.1, total_iter=4)]\n"
        f"checkpoint_config = dict(_delete_=True, interval=1, out_dir={str(tmp_path / 'big')!r},"
        " meta=dict(note='mine'))\n"
    )
    whole = changed(f"{text}work_dir = {str(tmp_path / 'whole')!r}", "whole")
    code, out, err = launch("train", whole, "--no-validate")
    assert code == 0, err + out
    folder = tmp_path / "big/whole/float"
    assert {"epoch_1.pth", "epoch_2.pth", "latest.pth"} <= {p.name for p in folder.iterdir()}
    meta = load_checkpoint(folder / "epoch_1.pth")["meta"]
    assert (meta["note"], meta["mmdet_version"]) == ("mine", "2.28.2")

    resume = f"resume_from = {str(folder / 'epoch_1.pth')!r}\n"
    part = changed(f"{text}{resume}work_dir = {str(tmp_path / 'part')!r}", "part")
    code, out, err = launch("train", part, "--no-validate")
    assert code == 0, err + out
    assert "epoch_1.pth: epoch 1, iteration 6" in out
    first, second = (
        load_checkpoint(tmp_path / name / "float/float.pth")["state_dict"]
        for name in ("whole", "part")
    )
    assert not [key for key in first if key.startswith("ema_")]
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    # The checkpoint has the average as its weights; the training's own weights differ.
    own = load_checkpoint(folder / "epoch_2.pth")["companions"]["average"]["values"]
    assert not torch.equal(own["neck.fpn_convs.0.conv.weight"],
                           first["neck.fpn_convs.0.conv.weight"])  # fmt: skip


def test_resume_from_that_is_not_there(launch: Launch, changed: Write, tmp_path: Path) -> None:
    path = changed(f"resume_from = {str(tmp_path / 'none.pth')!r}")
    error = only_error(launch("train", path, "--work-dir", tmp_path / "work"))
    assert "none.pth does not exist" in error


def test_resume_from_of_a_bare_float_checkpoint(
    launch: Launch, changed: Write, untrained: Path, tmp_path: Path
) -> None:
    path = changed(f"resume_from = {str(untrained)!r}")
    error = only_error(launch("train", path, "--work-dir", tmp_path / "work"))
    assert "has no optimizer's state" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("custom_imports = dict(imports=['nowhere_at_all'])", "module nowhere_at_all cannot"),
        ("resume_from = 'none.pth'", "none.pth does not exist"),
        ("model = dict(backbone=dict(init_cfg=dict(PRETRAINED, checkpoint='no.pth')))",
         "initial weights of backbone: no.pth does not exist"),
        ("model = dict(backbone=dict(init_cfg=dict(PRETRAINED, prefix='wrong.',"
         " checkpoint={untrained!r})))", "has nothing below prefix 'wrong.'"),
        ("model = dict(backbone=dict(init_cfg=dict(PRETRAINED, checkpoint={untrained!r})))",
         "set init_cfg.prefix='backbone.'"),
        ("model = dict(backbone=dict(base_channels=16, init_cfg=dict(PRETRAINED,"
         " prefix='backbone.', checkpoint={untrained!r})), neck=dict(in_channels=[32, 64, 128]))",
         "holds the weights of another network"),
        ("model = dict(backbone=dict(init_cfg=dict(PRETRAINED,"
         " checkpoint='http://127.0.0.1:9/a.pth')))", "cannot be fetched"),
        ("mp_start_method = 'thread'", "mp_start_method is 'thread'"),
    ],
)  # fmt: skip
def test_two_ranks_say_a_mistake_once(
    changed: Write, untrained: Path, tmp_path: Path, text: str, message: str
) -> None:
    text = text.replace("PRETRAINED", PRETRAINED)
    path = changed(text.format(untrained=str(untrained)))
    done = on_ranks(2, "train", path, "--work-dir", tmp_path / "work", "--no-validate")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert message in line
    assert not list((tmp_path / "work").rglob("*.pth"))


def test_pretrained_weights_of_the_backbone_alone_are_taken(
    changed: Write, untrained: Path
) -> None:
    from dq.detector.config.read import finish, read_config
    from dq.detector.model.build import build_model

    path = changed(
        f"model = dict(backbone=dict(init_cfg=dict({PRETRAINED}, prefix='backbone.',"
        f" checkpoint={str(untrained)!r})))"
    )
    config = finish(read_config(path))
    detector = build_model(config, tuple(config.data.test.classes), initialise=True)
    expected = load_checkpoint(untrained)["state_dict"]
    for name, value in detector.backbone.state_dict().items():
        assert torch.equal(value, expected[f"backbone.{name}"])
