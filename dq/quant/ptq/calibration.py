"""Calibrate a prepared model: run batches through it and keep the observed ranges."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dq.counted import counted
from dq.progress import progress
from dq.quant.graph.nodes import Given
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.observers.histogram import HistogramObserver
from dq.quant.observers.min_max import MovingAverageObserver
from dq.quant.observers.range_search import WeightedMseObserver
from dq.quant.ptq.channel_effects import AT_ONCE, channel_effects
from dq.quant.ptq.parts import captured, rows_of
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.quantizers.restore import in_phase, watching_inputs

log = logging.getLogger(__name__)
Batch = TypeVar("Batch")
# Images of the first batch on which the effects of channels are measured.
EFFECT_IMAGES = 8
# Boxes of one backward pass.
BOXES_AT_ONCE = 100


@torch.no_grad()
def calibrate_(graph: QuantizedGraph, batches: Iterable[Batch], run: Callable[[Batch], int]) -> int:
    """Observe every tensor over these batches; leave the quantizers FROZEN with their ranges.

    Runs in one process. There are no gradients, batch norms are in evaluation mode, and nothing is
    fake-quantized, so all ranges are those of the float model. Moving averages give all batches the
    same weight. Histograms keep collecting until they are told to stop.

    Args:
        graph: The graph of the prepared model.
        batches: Anything that ``run`` accepts.
        run: Runs the graph and all its parts on a batch, and returns its number of images.

    Returns:
        The number of images.

    Raises:
        ValueError: There was no image, or a quantizer has no range afterwards.
    """
    graph.root.eval()
    quantizers = graph.activations()
    # The other observers update once at the end, as if all batches were one.
    averages = [q for q in quantizers.values() if type(q.observer) is MovingAverageObserver]
    for quantizer in quantizers.values():
        if isinstance(quantizer.observer, HistogramObserver):
            quantizer.observer.start_collecting_()
    began = time.monotonic()
    batches = _weighing_channels(graph, batches, run)
    set_phase(graph.quantizers, Phase.CALIBRATE)
    images = 0
    with _equal_weights(averages) as weigh, _noting_calls(graph) as called:
        for number, batch in enumerate(progress(batches, "calibration", "batch[es]"), start=1):
            weigh(number)
            images += run(batch)
            update_scales_(averages)
    update_scales_([q for q in quantizers.values() if q not in averages])
    if not images:
        raise ValueError("there is no image to calibrate with: the data for it is empty")
    _require_ranges(graph, called)
    initialise_weights_(graph.all_layers())
    set_phase(graph.quantizers, Phase.FROZEN)
    log.info(
        "calibrated %s on %s in %.0f s",
        counted(len(quantizers), "quantizer[s]"),
        counted(images, "image[s]"),
        time.monotonic() - began,
    )
    return images


def _require_ranges(graph: QuantizedGraph, called: Collection[str]) -> None:
    """Raise ValueError if a quantizer has no range.

    Args:
        graph: After the batches.
        called: The parts that got any values.
    """
    without = [name for name, quantizer in graph.activations().items() if not quantizer.has_range]
    idle = {
        site.name: part
        for part, network in graph.parts.items()
        if part not in called
        for site in network.sites
    }
    # Where the model yields NaN, later parts may get nothing because of that.
    if spoilt := [name for name in without if name not in idle]:
        raise ValueError(
            f"{counted(len(spoilt), 'quantizer[s] [has|have]')} no finite range after calibration"
            f" (first {spoilt[0]}); the float model yields NaN or infinity there"
        )
    if without:
        parts = sorted({idle[name] for name in without})
        raise ValueError(
            f"{counted(len(without), 'quantizer[s] [has|have]')} no range after calibration (first"
            f" {without[0]}), because {', '.join(parts)} got no boxes on these images; calibrate a"
            " trained detector on images with objects, or leave the head in float with the rule"
            f" dict(module='{parts[0]}*', quantize=False)"
        )


@contextmanager
def _noting_calls(graph: QuantizedGraph) -> Iterator[set[str]]:
    """Collect the names of the parts that are called with any values in the body."""
    called: set[str] = set()

    def hook_of(part: str) -> Callable[..., None]:
        def hook(_: object, inputs: tuple[Tensor, ...]) -> None:
            if all(x.numel() for x in inputs):
                called.add(part)

        return hook

    with watching_inputs({graph.root.get_submodule(part): hook_of(part) for part in graph.parts}):
        yield called


def _weighing_channels(
    graph: QuantizedGraph, batches: Iterable[Batch], run: Callable[[Batch], int]
) -> Iterable[Batch]:
    """Give observers the weights of their channels, from the first batch; return all batches."""
    weighted = {
        name: quantizer
        for name, quantizer in graph.activations().items()
        if isinstance(quantizer.observer, WeightedMseObserver)
    }
    rest = iter(batches)
    first = list(islice(rest, 1))
    if weighted and first and isinstance(first[0], Tensor):
        images = first[0][:EFFECT_IMAGES].to(device_of(graph.root))
        calls: dict[str, list[Given]] = {"": [*torch.split(images, AT_ONCE)]}
        calls |= _calls_of_parts(graph, images, run)
        for part, own in calls.items():
            for name, effects in channel_effects(graph.networks[part], own, weighted).items():
                observer = weighted[name].observer
                assert isinstance(observer, WeightedMseObserver)
                observer.weigh_channels_(effects)
    return chain(first, rest)


def _calls_of_parts(
    graph: QuantizedGraph, images: Any, run: Callable[[Any], int]
) -> dict[str, list[Given]]:
    """Return the float inputs of each part."""
    if not graph.parts:
        return {}
    with in_phase(graph.quantizers, Phase.OFF), captured(graph) as calls:
        run(images)
    return {part: rows_of(found, BOXES_AT_ONCE) for part, found in calls.items()}


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a model's parameters, the CPU if it has none."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


@contextmanager
def _equal_weights(quantizers: Sequence[ActivationQuantizer]) -> Iterator[Callable[[int], None]]:
    """Make moving averages weigh all batches alike in the body: call with 1, 2, ..."""
    observers = [q.observer for q in quantizers if isinstance(q.observer, MovingAverageObserver)]
    momenta = [observer.momentum for observer in observers]

    def weigh(number: int) -> None:
        for observer in observers:
            observer.momentum = 1.0 / number

    try:
        yield weigh
    finally:
        for observer, momentum in zip(observers, momenta, strict=True):
            observer.momentum = momentum
