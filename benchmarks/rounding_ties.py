"""Measure how accurate a quantized detector's metric is: evaluate it with moved rounding ties.

    python -m benchmarks.rounding_ties CONFIG --checkpoint QUANTIZED.pth [--times 5] [--move 1e-5]
        [--cfg-options key=value ...]

Before every rounding each value is moved at random by at most --move scales, about as much as by
another order of float32 sums. A difference between two detectors that is smaller than the spread of
these evaluations means nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dq.detector.config.read import finish, read_config
from dq.detector.data.datasets import dataset_of
from dq.detector.evaluation.evaluate import evaluate, main_metric
from dq.detector.model.stored_detector import rounding_detector
from dq.dist.files.checkpoint import load_checkpoint


def move_ties_(graph: Any, largest: float, seed: int) -> list[Any]:
    """Move all activation quantizers' inputs by up to ``largest`` scales; return the hooks."""
    generator = torch.Generator().manual_seed(seed)

    def move(quantizer: Any, given: Any) -> Any:
        chance = 2 * torch.rand(given[0].shape, generator=generator) - 1
        return given[0] + largest * quantizer.scale * chance, *given[1:]

    return [q.register_forward_pre_hook(move) for q in graph.activations().values()]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the unchanged metric, and then one for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--move", type=float, default=1e-5, help="in scales (default 1e-5)")
    parser.add_argument("--cfg-options", nargs="+", default=[])
    arguments = parser.parse_args(argv)
    config = finish(read_config(arguments.config, arguments.cfg_options))
    content, name = load_checkpoint(arguments.checkpoint), str(arguments.checkpoint)
    detector, graph, _ = rounding_detector(config, content, name)
    dataset = dataset_of(config, "test", test_mode=True)
    for seed in range(-1, arguments.times):
        hooks = [] if seed < 0 else move_ties_(graph, arguments.move, seed)
        found = evaluate(
            detector, dataset, config.get("evaluation", {}), device=torch.device("cpu")
        )
        what = "as it is" if seed < 0 else f"ties moved, seed {seed}"
        print(f"{what}: {100 * main_metric(found)[1]:.2f}", flush=True)
        for hook in hooks:
            hook.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
