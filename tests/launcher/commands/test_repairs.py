"""Repairs and mixed precision through the commands: calibrate, evaluate, train on, analyze."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dq.detector.config.read import finish, read_config
from dq.detector.model.build import build_model
from dq.dist.files.checkpoint import load_checkpoint
from tests.launcher.conftest import Launch

pytestmark = pytest.mark.slow

OPTIONS = (
    "--cfg-options",
    "quant.preset=w4a8",
    "quant.repairs=[equalize,adaround]",
    "quant.rounding_steps=0",
    "quant.mixed.max_raised=2",
    "quant.mixed.images=2",
)


@pytest.fixture(scope="module")
def float_checkpoint(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    settings = finish(read_config(config))
    detector = build_model(settings, tuple(str(k) for k in settings.classes), initialise=False)
    path = tmp_path_factory.mktemp("float") / "float.pth"
    torch.save({"state_dict": detector.state_dict()}, path)
    return path


def test_raised_quantizers_and_repaired_weights_survive_the_checkpoint(
    config: Path, float_checkpoint: Path, launch: Launch, tmp_path: Path
) -> None:
    folder = ("--work-dir", tmp_path, "--threads", 1)
    code, _, error = launch(
        "calibrate", config, "--checkpoint", float_checkpoint, *folder, *OPTIONS
    )
    assert code == 0, error
    path = tmp_path / "calibrated/calibrated.pth"
    content = load_checkpoint(path)
    raised = content["quantization"]["recipe"]["raised"]
    assert len(raised) == 2
    before = load_checkpoint(float_checkpoint)["state_dict"]
    assert content["state_dict"].keys() == before.keys()
    repaired = content["quantization"]["repaired_weights"]
    assert any(not torch.equal(v, before[k]) for k, v in repaired.items())

    assert launch("eval", config, "--checkpoint", path, *folder)[0] == 0
    calibrated = json.loads((tmp_path / "calibrated/summary.json").read_text())
    again = json.loads((tmp_path / "eval/summary.json").read_text())
    assert again["metrics"] == calibrated["metrics"]

    code, _, error = launch("qat", config, "--checkpoint", path, *folder, *OPTIONS)
    assert code == 0, error
    trained = load_checkpoint(tmp_path / "qat/qat.pth")["quantization"]["recipe"]
    assert trained["raised"] == raised
    assert "no calibration needed" in (tmp_path / "logs/rank_0.log").read_text()


def test_a_calibrated_checkpoint_has_the_float_detector_and_its_teacher_too(
    config: Path, float_checkpoint: Path, launch: Launch, tmp_path: Path
) -> None:
    """Four bits clip the weights, and biases are corrected; a float detector has neither."""
    before = load_checkpoint(float_checkpoint)["state_dict"]
    folder = ("--work-dir", tmp_path, "--threads", 1)
    options = ("--cfg-options", "quant.preset=w4a8", "quant.distill.weight=1.0")
    code, _, error = launch(
        "calibrate", config, "--checkpoint", float_checkpoint, *folder, *options
    )
    assert code == 0, error
    path = tmp_path / "calibrated/calibrated.pth"
    content = load_checkpoint(path)
    assert all(torch.equal(v, before[k]) for k, v in content["state_dict"].items())
    assert content["quantization"]["repaired_weights"]

    for begin, name in ((path, "from calibrated"), (float_checkpoint, "from float")):
        here = ("--work-dir", tmp_path / name, "--threads", 1)
        code, _, error = launch(
            "qat", config, "--checkpoint", begin, "--no-validate", *here, *options
        )
        assert code == 0, error
        kept = load_checkpoint(tmp_path / name / "qat/latest.pth")["companions"]["teacher"]
        teacher = {k: v for k, v in kept.items() if k in before}
        assert teacher.keys() == before.keys()
        assert all(torch.equal(v, before[k]) for k, v in teacher.items())
    # Both began with the same repaired weights, so they end the same.
    ends = [
        load_checkpoint(tmp_path / n / "qat/qat.pth") for n in ("from calibrated", "from float")
    ]
    assert all(torch.equal(v, ends[1]["state_dict"][k]) for k, v in ends[0]["state_dict"].items())


def _with_a_large_channel(float_checkpoint: Path, folder: Path) -> Path:
    state = load_checkpoint(float_checkpoint)["state_dict"]
    state["neck.fpn_convs.0.bn.weight"][2] *= 300
    for name in ("cls_convs", "reg_convs"):
        state[f"bbox_head.{name}.0.0.weight"][:, 2] /= 300
    path = folder / "large.pth"
    torch.save({"state_dict": state}, path)
    return path


def test_channel_scales_and_reconstruction_survive_the_checkpoint(
    config: Path, float_checkpoint: Path, launch: Launch, tmp_path: Path
) -> None:
    """The pyramid's outputs pass SiLU, with one large channel that the head hardly reads."""
    large = _with_a_large_channel(float_checkpoint, tmp_path)
    state = load_checkpoint(large)["state_dict"]
    options = (
        "--cfg-options",
        "model.neck.act_cfg.type=Swish",
        "quant.repairs=[channel_scales,bias,reconstruct]",
        "quant.reconstruction_steps=2",
        "quant.repair_images=4",
    )
    folder = ("--work-dir", tmp_path, "--threads", 1)
    code, _, error = launch("calibrate", config, "--checkpoint", large, *folder, *options)
    assert code == 0, error
    path = tmp_path / "calibrated/calibrated.pth"
    content = load_checkpoint(path)
    scaled = content["quantization"]["recipe"]["scaled"]
    assert "neck/fpn_convs/0/activate/out" in scaled
    assert content["state_dict"].keys() == state.keys()

    assert launch("eval", config, "--checkpoint", path, *folder, *options)[0] == 0
    calibrated = json.loads((tmp_path / "calibrated/summary.json").read_text())
    again = json.loads((tmp_path / "eval/summary.json").read_text())
    assert again["metrics"] == calibrated["metrics"]

    code, _, error = launch("qat", config, "--checkpoint", path, *folder, *options)
    assert code == 0, error
    trained = load_checkpoint(tmp_path / "qat/qat.pth")["quantization"]["recipe"]
    assert trained["scaled"] == scaled
    assert "no calibration needed" in (tmp_path / "logs/rank_0.log").read_text()


def test_a_scaled_checkpoint_is_the_float_detector_for_plain_mmdet(
    config: Path, float_checkpoint: Path, launch: Launch, tmp_path: Path
) -> None:
    """Nothing is said about repairs, and channels are scaled where one is much too large."""
    large = _with_a_large_channel(float_checkpoint, tmp_path)
    state = load_checkpoint(large)["state_dict"]
    options = ("--cfg-options", "model.neck.act_cfg.type=Swish")
    folder = ("--work-dir", tmp_path, "--threads", 1, "--wandb", "disabled")
    code, _, error = launch("calibrate", config, "--checkpoint", large, *folder, *options)
    assert code == 0, error
    path = tmp_path / "calibrated/calibrated.pth"
    content = load_checkpoint(path)
    assert content["quantization"]["recipe"]["scaled"]
    for key, value in content["state_dict"].items():
        torch.testing.assert_close(value, state[key], rtol=3e-7, atol=0)

    # Trained on without quantization, it is that of the float detector.
    words = (config, "--checkpoint", path, "--control", *folder, *options)
    code, _, error = launch("qat", *words, "runner.max_epochs=1")
    assert code == 0, error
    trained = load_checkpoint(tmp_path / "qat/qat.pth")["quantization"]
    assert trained["recipe"]["scaled"]
    control = load_checkpoint(tmp_path / "control/control.pth")["state_dict"]
    ratio = control["neck.fpn_convs.0.bn.weight"][2] / state["neck.fpn_convs.0.bn.weight"][2]
    assert 0.9 < ratio < 1.1


def test_analyze_prints_a_table_and_writes_json_and_plot(
    config: Path, float_checkpoint: Path, launch: Launch, tmp_path: Path
) -> None:
    words = ("--checkpoint", float_checkpoint, "--work-dir", tmp_path, "--threads", 1)
    code, out, error = launch(
        "analyze", config, *words, "--max-raised", 1, "--images", 2, "--rows", 3
    )
    assert code == 0, error
    assert out.count("| weight |") + out.count("| activation |") == 3
    assert "with 1 raised to 16 bit" in out
    result = json.loads((tmp_path / "analyze/sensitivity.json").read_text())
    assert result["sqnr_raised"] >= result["sqnr"]
    assert (tmp_path / "analyze/sensitivity.png").stat().st_size > 5000


def test_an_unknown_repair_is_one_line(
    config: Path, float_checkpoint: Path, launch: Launch
) -> None:
    code, _, error = launch(
        "calibrate", config, "--checkpoint", float_checkpoint, "--cfg-options", "quant.repairs=bais"
    )
    assert code == 2
    assert "did you mean bias?" in error
