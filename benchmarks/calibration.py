"""Measure calibration against float inference of the same images, in one run, with every observer.

    python -m benchmarks.calibration CONFIG --checkpoint FLOAT.pth [--images 128] [--batch 8]
        [--observers mse entropy ...] [--repairs channel_scales bias] [--rounds 5] [--composed]
        [--device cuda]
        [--cfg-options KEY=VALUE ...]

The images are in the device's memory before the clock starts. In each round the float detector's
network runs on them, and then each observer calibrates on them, with the search for its ranges;
every second round in reverse order. The table has the median of the rounds' ratios to float, and
their quartiles.
With --repairs every observer also runs with these repairs.
With --composed every observer also runs with torch's operators, without our kernels.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from benchmarks.speed import quartiles, seconds, without_kernels
from dq.counted import counted
from dq.detector.calibration.calibrate import calibrate, calibration_of
from dq.detector.config.read import finish, read_config
from dq.detector.data.datasets import calibration_dataset, calibration_images
from dq.detector.model.graph import quantize_detector, trace_detector
from dq.detector.model.stored_detector import float_detector
from dq.dist.files.checkpoint import load_checkpoint
from dq.quant.kernels import histogram
from dq.quant.ptq.settings import STEPS, Repair
from dq.quant.recipes.recipe import OBSERVERS, Recipe

Work = Callable[[], None]
Found = dict[str, dict[str, Any]]
FLOAT = "float inference"


def works(
    detector: nn.Module, batches: Sequence[Tensor], given: argparse.Namespace
) -> dict[str, Work]:
    """Return what is to be measured, by name, each on its own copy of the detector."""
    detector.eval()
    network = fx.GraphModule(detector, trace_detector(detector).graph).eval()

    def infer() -> None:
        with torch.no_grad():
            for batch in batches:
                network(batch)

    found: dict[str, Work] = {FLOAT: infer}
    for name in given.observers:
        found[name] = _calibration(copy.deepcopy(detector), name, batches)
    if given.repairs:
        for name in given.observers:
            row = f"{name}, {', '.join(given.repairs)}"
            found[row] = _repaired(detector, name, batches, given)
    if given.composed:
        for name in given.observers:
            found[f"{name}, torch's operators"] = _composed(found[name])
    return found


def _calibration(detector: nn.Module, observer: str, batches: Sequence[Tensor]) -> Work:
    graph = quantize_detector(detector, Recipe(observer=observer))
    device = batches[0].device
    return lambda: _done(calibrate(detector, graph, batches, device))


def _repaired(
    detector: nn.Module, observer: str, batches: Sequence[Tensor], given: argparse.Namespace
) -> Work:
    """Return calibration with repairs.

    Repairs change the weights, so each round has its own detector, which is prepared before the
    clock starts.
    """
    repair = Repair(steps=tuple(given.repairs))
    waiting = []
    for _ in range(given.rounds):
        own = copy.deepcopy(detector)
        graph = quantize_detector(own, Recipe(observer=observer))
        waiting.append(calibration_of(own, graph, batches[0].device, repair=repair))

    def work() -> None:
        calibration = waiting.pop()
        calibration.find_ranges_(batches)
        calibration.finish_()

    return work


def _done(result: object) -> None:
    """Drop a result."""


def _composed(work: Work) -> Work:
    def composed() -> None:
        takes = histogram.takes
        histogram.takes = lambda x: False
        try:
            without_kernels(work)()
        finally:
            histogram.takes = takes

    return composed


def measure(detector: nn.Module, batches: Sequence[Tensor], given: argparse.Namespace) -> Found:
    """Return seconds and the quartiles of the ratio to float inference, by name."""
    todo = works(detector, batches, given)
    taken: dict[str, list[float]] = {name: [] for name in todo}
    seconds(todo[FLOAT], given.device)
    for number in range(given.rounds):
        for name in list(todo) if number % 2 == 0 else reversed(todo):
            taken[name].append(seconds(todo[name], given.device))
    return {
        name: {
            "seconds": statistics.median(times),
            "ratio": quartiles([a / b for a, b in zip(times, taken[FLOAT], strict=True)]),
        }
        for name, times in taken.items()
    }


def table(found: Found) -> str:
    """Return the result as Markdown."""
    lines = ["| | s | time / float inference (quartiles) |", "|---|---|---|"]
    for name, row in found.items():
        low, middle, high = row["ratio"]
        lines.append(f"| {name} | {row['seconds']:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--observers", nargs="+", choices=OBSERVERS, default=list(OBSERVERS))
    parser.add_argument("--repairs", nargs="+", choices=STEPS, default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--composed", action="store_true", help="without our kernels, too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cfg-options", nargs="+", default=[])
    given = parser.parse_args(argv)
    if given.rounds < 2:
        parser.error("--rounds is 2 or more")
    config = finish(read_config(given.config, given.cfg_options))
    torch.set_num_threads(given.threads)
    content = load_checkpoint(given.checkpoint)
    detector = float_detector(config, content, str(given.checkpoint), torch.device(given.device))
    images = calibration_images(
        calibration_dataset(config), num_images=given.images, batch_size=given.batch, seed=0
    )
    batches = [batch.to(given.device) for batch in images]
    images_of = counted(sum(map(len, batches)), "image[s]")
    threads, size = counted(given.threads, "thread[s]"), tuple(batches[0].shape[2:])
    print(f"{images_of}, {size}, {threads}, {given.device}")
    print(table(measure(detector, batches, given)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
