"""The cost of calibration beside float inference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import calibration
from dq.detector.config.read import finish, read_config
from dq.detector.data.class_names import class_list
from dq.detector.model.build import build_model
from dq.quant.kernels import histogram, native

CONFIG = Path(__file__).resolve().parents[2] / "configs/digits/ssd_resnet_fpn_160.py"


@pytest.mark.slow
def test_every_observer_is_measured_beside_float_inference(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"data_root={digits}"]
    config = finish(read_config(CONFIG, options))
    detector = build_model(config, class_list(config).names, initialise=False)
    checkpoint = tmp_path / "float.pth"
    torch.save({"state_dict": detector.state_dict()}, checkpoint)
    takes = histogram.takes, native.takes
    words = [str(CONFIG), "--checkpoint", str(checkpoint), "--images", "4", "--batch", "2"]
    words += ["--observers", "min_max", "mse", "--rounds", "2", "--composed"]
    words += ["--repairs", "channel_scales", "bias"]
    assert calibration.main([*words, "--cfg-options", *options]) == 0
    assert (histogram.takes, native.takes) == takes
    head, *lines = capsys.readouterr().out.strip().splitlines()[-10:]
    assert head == "4 images, (160, 160), 1 thread, cpu"
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    others = ["min_max", "mse"]
    for more in ("channel_scales, bias", "torch's operators"):
        others += [f"{name}, {more}" for name in ("min_max", "mse")]
    assert names == [calibration.FLOAT, *others]
    assert "| 1.00 (1.00 to 1.00) |" in lines[2]


def test_one_round_has_no_quartiles(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        calibration.main(["x.py", "--checkpoint", "x.pth", "--rounds", "1"])
    assert "--rounds is 2 or more" in capsys.readouterr().err
