"""Estimate the cost of a training from the network's multiply-adds and the schedule.

    python -m benchmarks.cost CONFIG... --images 16551 [--tflops 20]

Counted on the meta device at the test pipeline's size: no data and no weights are needed. A
training step counts as three forward passes (one forward, two backward). `--tflops` is what the GPU
sustains. Loading and small operators come on top.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dq.detector.config.options import apply_options
from dq.detector.config.read import finish, read_config
from dq.detector.data.data_section import section_of
from dq.detector.data.datasets import test_classes
from dq.detector.export.write import image_size
from dq.detector.model.build import build_model
from dq.detector.model.channels import input_channels
from launcher.config import quant_settings

PASSES_PER_STEP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of a config.

    Attributes:
        multiplications: Multiply-adds of one image's forward pass.
        float_images: Images processed by float training, repetitions included.
        quantized_images: Images processed by quantized training.
    """

    multiplications: float
    float_images: int
    quantized_images: int


def passes(config: Any) -> int:
    """Return how often a training processes each image."""
    section, times = section_of(config, "train"), 1
    while "dataset" in section or "datasets" in section:
        times *= section.get("times", 1)
        # All sets are processed equally often, whatever the repetitions of each.
        section = section["dataset"] if "dataset" in section else section["datasets"][0]
    return int(times * config.runner.max_epochs)


def cost_of(path: Path, num_images: int) -> Cost:
    """Return the cost of the config at ``path`` with this number of training images."""
    config = finish(read_config(path))
    detector = build_model(config, test_classes(config), initialise=False).to("meta").eval()
    height, width = image_size(config, None)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        image = torch.zeros(1, input_channels(detector), height, width, device="meta")
        detector.bbox_head(detector.extract_feat(image))
    in_float = num_images * passes(config)
    apply_options(config, quant_settings(config.get("quant")).training)
    return Cost(
        multiplications=counter.get_total_flops() / 2,
        float_images=in_float,
        quantized_images=num_images * passes(config),
    )


def hours(cost: Cost, images: int, tflops: float) -> float:
    """Return the compute time of a training over ``images``, in hours of one GPU."""
    return 2 * cost.multiplications * PASSES_PER_STEP * images / (tflops * 1e12) / 3600


def table(costs: dict[str, Cost], tflops: float) -> str:
    """Return the costs as Markdown."""
    lines = [
        "| config | multiply-adds an image | images, float | GPU hours | images, QAT |",
        "|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        lines.append(
            f"| {name} | {cost.multiplications / 1e9:.1f} G | {cost.float_images / 1e6:.2f} M"
            f" | {hours(cost, cost.float_images, tflops):.1f}"
            f" | {cost.quantized_images / 1e6:.2f} M |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("configs", type=Path, nargs="+")
    parser.add_argument("--images", type=int, required=True, help="of the training set")
    parser.add_argument("--tflops", type=float, default=20.0, help="sustained, 10^12 a second")
    given = parser.parse_args(argv)
    costs = {path.stem: cost_of(path, given.images) for path in given.configs}
    print(table(costs, given.tflops))
    return 0


if __name__ == "__main__":
    sys.exit(main())
