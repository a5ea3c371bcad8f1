"""Measure a quantized training step against a float one: paired in one run, with other libraries.

    python -m benchmarks.speed [--nets ssd_mobilenet retinanet_r18 ...] [--sides float training ...]
        [--size 256] [--batch 4] [--rounds 9] [--compile] [--device cuda] [--amp] [--channels-last]
        [--out speed.json] [--write docs/tables/speed.md]

A step is a whole training step of mmdet: forward, losses, backward, SGD and, if ranges are
observed, their update. In each round every side makes one step in turn, so that other load on the
machine affects all of them. The table has the median of the rounds' ratios to float, and their
quartiles. Peak memory is parameters, buffers and momentum, plus the peak of torch's allocator in
one step.

Sides:
    float, float_frozen: mmdet's own step, norms with batch statistics or frozen
    observing: rounding, observing, norms with batch statistics: the first phase of QAT
    frozen_norms, frozen: the same with frozen norms, and with frozen ranges too: the last phases
    lsq: learned scales
    composed: `observing` with torch's operators, without our kernels
    fx, pt2e: the net prepared by torch.ao's FX QAT, by torchao's PT2E QAT (`pip install torchao`)
    inference, calibrating: both without gradients
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv import Config
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks import peers
from benchmarks.nets import NETS, build
from dq.detector.model.graph import attach, quantize_detector, trace_detector
from dq.detector.step.parallel_detector import parse_losses
from dq.quant.kernels import native
from dq.quant.kernels import table as table_kernels
from dq.quant.kernels.compile_pass import inductor_options
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset
from dq.quant.targets.registry import TARGETS

SIDES = (
    "float",
    "float_frozen",
    "observing",
    "frozen_norms",
    "frozen",
    "lsq",
    "composed",
    "fx",
    "pt2e",
    "inference",
    "calibrating",
)
WITHOUT_GRADIENT = ("inference", "calibrating")
Work = Callable[[], None]


def batch_of(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return random images with some boxes each, in the form that a training loader yields."""
    generator = torch.Generator().manual_seed(0)
    size, number = arguments.size, arguments.batch
    images = torch.randn(number, 3, size, size, generator=generator).to(arguments.device)
    if arguments.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    shape = (size, size, 3)
    meta = {
        "img_shape": shape,
        "pad_shape": shape,
        "ori_shape": shape,
        "batch_input_shape": (size, size),
        "scale_factor": np.ones(4, dtype=np.float32),
        "flip": False,
        "filename": "random",
    }
    corners = torch.rand(number, 6, 2, generator=generator) * size * 0.6
    sides = size * (0.1 + 0.3 * torch.rand(number, 6, 2, generator=generator))
    boxes = torch.cat([corners, corners + sides], 2).to(arguments.device)
    labels = torch.randint(0, 3, (number, 6), generator=generator).to(arguments.device)
    return {
        "img": images,
        "img_metas": [dict(meta) for _ in range(number)],
        "gt_bboxes": list(boxes),
        "gt_labels": list(labels),
    }


def side(
    name: str, detector: nn.Module, data: dict[str, Any], given: argparse.Namespace
) -> tuple[Work, int]:
    """Return a function that does one step of this side on its own detector.

    Also return the bytes that the detector and its optimizer hold between steps.
    """
    detector = copy.deepcopy(detector).to(given.device).train()
    if given.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    images = data["img"]
    after: Work = lambda: None  # noqa: E731
    network: Callable[[Tensor], Any]
    if name in peers.PEERS:
        network = peers.PEERS[name](_float_graph(detector), images)
        attach(detector, network)
    elif name in ("float", "float_frozen", "inference"):
        network = _float_graph(detector)
        if given.compile:
            network = torch.compile(network)
        if given.compile or name == "inference":
            attach(detector, network)
        if name == "float_frozen":
            freeze_norms(detector)
    else:
        network, after = quantized(name, detector, images, given.target)
        if given.compile:
            network = torch.compile(network, options=inductor_options())
        attach(detector, network)
    if name in WITHOUT_GRADIENT:
        return _inference(detector, network, images), num_bytes(detector.state_dict().values())
    momentum = num_bytes(p for p in detector.parameters() if p.requires_grad)
    held = num_bytes(detector.state_dict().values()) + momentum
    work = _training(detector, data, after, given)
    return (without_kernels(work) if name == "composed" else work), held


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the memory of tensors in bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)


def _float_graph(detector: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(detector, trace_detector(detector).graph)


def quantized(
    name: str, detector: nn.Module, images: Tensor, target: str = "int8"
) -> tuple[Any, Work]:
    """Return the calibrated graph of a side in its phase, and what must be called after a step."""
    recipe = replace(preset(target), learned="lsq" if name == "lsq" else None)
    if name != "calibrating":
        # Searched ranges stay as they are in training, so that nothing would be observed.
        recipe = replace(recipe, observer="moving_average")
    graph = quantize_detector(detector, recipe)
    quantizers = list(graph.activations().values())
    detector.eval()
    set_phase(graph.quantizers, Phase.CALIBRATE)
    with torch.no_grad():
        graph(images)
    update_scales_(quantizers)
    initialise_weights_(graph.layers())
    if name == "calibrating":
        return graph, lambda: update_scales_(quantizers)
    detector.train()
    set_phase(graph.quantizers, Phase.FROZEN if name == "frozen" else Phase.TRAIN)
    if name in ("frozen_norms", "frozen"):
        freeze_norms(detector)
    return graph, (lambda: None) if name == "frozen" else (lambda: update_scales_(quantizers))


def freeze_norms(detector: nn.Module) -> None:
    """Make batch norms use their running statistics and not update them."""
    for module in detector.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def without_kernels(work: Work) -> Work:
    """Return the same work with compositions of torch's operators only."""

    def composed() -> None:
        takes, tables = native.takes, table_kernels.takes
        native.takes = lambda *tensors: False
        table_kernels.takes = lambda x: False
        try:
            work()
        finally:
            native.takes, table_kernels.takes = takes, tables

    return composed


def _inference(detector: nn.Module, network: Callable[[Tensor], Any], images: Tensor) -> Work:
    detector.eval()

    def work() -> None:
        with torch.no_grad():
            network(images)

    return work


def _training(
    detector: nn.Module, data: dict[str, Any], after: Work, given: argparse.Namespace
) -> Work:
    parameters = [p for p in detector.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9)
    device = torch.device(given.device).type

    def work() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=given.amp):
            losses = detector(**data)
        loss, _ = parse_losses(losses)
        loss.backward()
        optimizer.step()
        after()

    return work


def seconds(work: Work, device: str) -> float:
    """Return the time of the work in seconds, including the device's."""
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_bytes(work: Work, device: str) -> int:
    """Return the rise of the allocator's peak above its start while the work runs."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    records = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for record in sorted(records, key=lambda e: e.start_ns()):
        total += record.nbytes()
        peak = max(peak, total)
    return peak


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the three quartiles of at least two values."""
    return statistics.quantiles(values, n=4, method="inclusive")


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Measure all sides of one net."""
    config, detector = build(name, given.size)
    data = batch_of(config, given)
    works: dict[str, Work] = {}
    held: dict[str, int] = {}
    warm_up: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for one in given.sides:
        try:
            works[one], held[one] = side(one, detector, data, given)
            warm_up[one] = seconds(works[one], given.device)
            seconds(works[one], given.device)
        except Exception as error:  # A library that cannot do this net is part of the result.
            if one not in peers.PEERS:
                raise
            works.pop(one, None)
            left_out[one] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    memory = {one: held[one] + peak_bytes(work, given.device) for one, work in works.items()}
    times: dict[str, list[float]] = {one: [] for one in works}
    for number in range(given.rounds):
        order = list(works) if number % 2 == 0 else list(reversed(works))
        for one in order:
            times[one].append(seconds(works[one], given.device))
    sides = {}
    for one, taken in times.items():
        base = "inference" if one in WITHOUT_GRADIENT else "float"
        sides[one] = {
            "seconds": statistics.median(taken),
            "ratio": quartiles([a / b for a, b in zip(taken, times[base], strict=True)]),
            "memory_mib": memory[one] / 2**20,
            "memory_ratio": memory[one] / memory[base],
            "first_step_s": warm_up[one],
        }
    return {"net": name, "sides": sides, "left_out": left_out}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| net | side | ms | time / float (quartiles) | MiB | memory / float | first step, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, found in result["sides"].items():
            low, middle, high = found["ratio"]
            lines.append(
                f"| {result['net']} | {name} | {1000 * found['seconds']:.0f}"
                f" | {middle:.2f} ({low:.2f} to {high:.2f}) | {found['memory_mib']:.0f}"
                f" | {found['memory_ratio']:.2f} | {found['first_step_s']:.1f} |"
            )
        lines += [
            f"| {result['net']} | {name} | | {why} | | | |"
            for name, why in result["left_out"].items()
        ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["ssd_mobilenet"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--target", choices=TARGETS, default="int8")
    parser.add_argument("--compile", action="store_true", help="all but the peers")
    parser.add_argument("--amp", action="store_true", help="bf16 autocast")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--write", type=Path, help="the Markdown file")
    given = parser.parse_args(argv)
    if given.out and given.out == given.write:
        parser.error(f"--out and --write are both {given.out}; give two files")
    for one in given.sides:
        base = "inference" if one in WITHOUT_GRADIENT else "float"
        if base not in given.sides:
            parser.error(f"{one} is measured against {base}; add it to --sides")
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore")
    results = [measure(name, given) for name in given.nets]
    if given.out:
        settings = {k: str(v) for k, v in vars(given).items()}
        text = json.dumps({"settings": settings, "results": results}, indent=1)
        given.out.write_text(text + "\n")
    made = table(results)
    if given.write:
        line = "python -m benchmarks.speed " + " ".join(argv or sys.argv[1:])
        given.write.write_text(f"Made by `{line}`.\n\n{made}")
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
