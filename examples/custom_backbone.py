"""A backbone of your own in mmdet's config: train, calibrate and train quantized with the launcher.

This file does two things. Imported, it registers the backbone, as any module in a config's
`custom_imports` does; mmdet's registry and a plain torch module are all that is needed. Run, it
writes a config that names it and a tiny data set, and starts the launcher:

    python examples/custom_backbone.py

Everything is below runs/examples/backbone. One epoch on a few images teaches the detector nothing;
a real training differs only in the numbers of the config.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmdet.models.builder import BACKBONES
from torch import Tensor, nn


@BACKBONES.register_module()
class TinySiLUNet(nn.Module):
    """Three stages of strides 8, 16 and 32, with SiLU and a product that gates each channel.

    Args:
        channels: Of the three stages.
    """

    def __init__(self, channels: Sequence[int] = (16, 24, 32)) -> None:
        super().__init__()
        self.stem = nn.Sequential(self._layer(3, 8), self._layer(8, 12))
        inputs = (12, *channels)
        self.stages = nn.ModuleList(map(self._layer, inputs, channels))
        self.gates = nn.ModuleList(nn.Conv2d(number, number, 1) for number in channels)

    @staticmethod
    def _layer(inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the features of the three stages of images (N, 3, H, W)."""
        x, found = self.stem(x), []
        for stage, gate in zip(self.stages, self.gates, strict=True):
            x = stage(x)
            x = x * gate(x.mean((2, 3), keepdim=True)).sigmoid()
            found.append(x)
        return tuple(found)


CONFIG = """
_base_ = ["digits_ssd_resnet18.py"]  # As `launcher init` has written it.
custom_imports = dict(imports=["custom_backbone"], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type="TinySiLUNet", channels=(16, 24, 32)),
    neck=dict(in_channels=[16, 24, 32], out_channels=16),
    bbox_head=dict(in_channels=(16,) * 5),
)
data = dict(train=dict(times=1))
runner = dict(max_epochs=1)
evaluation = dict(interval=1)
# Without a recipe of training: it would give this short training 50 epochs.
quant = dict(
    _delete_=True,
    preset="onnxruntime",
    schedule=dict(calibration_batches=2),
    training={"optimizer.lr": 1e-4},
)
"""


def launch(folder: Path, words: str) -> None:
    """Run a command of the launcher in a folder; this file's folder is where modules are found."""
    print(f"$ launcher {words}", flush=True)
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "launcher", *words.split()]
    subprocess.run(command, cwd=folder, env=environment, check=True)


def main() -> None:
    """Write data and configs, and run all stages."""
    folder = Path("runs/examples/backbone")
    folder.mkdir(parents=True, exist_ok=True)
    launch(folder, "data digits --num-train 16 --num-val 4 --num-test 4")
    launch(folder, "init data/digits --detector ssd_resnet18 --size 96 --force")
    (folder / "own.py").write_text(CONFIG, encoding="utf-8")
    # Train in float, calibrate, train quantized; `train`, `calibrate` and `qat` do one of these.
    launch(folder, "run own.py --resume")


if __name__ == "__main__":
    main()
