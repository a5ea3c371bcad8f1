"""Calibrate a prepared detector: run images through it and keep the ranges that were seen."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dq.detector.graph import features_of
from dq.detector.roi_heads import run_roi_heads
from dq.quant.adaround import adaround_
from dq.quant.bias import correct_bias_
from dq.quant.equalize import equalize_
from dq.quant.fake_quantize import ActivationQuantizer, update_scales_
from dq.quant.histogram import HistogramObserver
from dq.quant.learned import initialise_weights_
from dq.quant.observer import MovingAverageObserver
from dq.quant.phase import Phase, set_phase
from dq.quant.quantized_graph import QuantizedGraph
from dq.quant.repair import Repair
from dq.quant.sensitivity import (
    choose_raised_,
    decibel,
    float_outputs,
    noise,
    sensitivities,
)
from dq.quant.weight_range import clip_weights_, restore_weights_
from dq.quant.widths import give_headroom_

log = logging.getLogger(__name__)

# On so many calibration images a repair has to show that it helps.
CHECK_IMAGES = 32


def calibrate_and_repair(
    detector: nn.Module,
    graph: QuantizedGraph,
    batches: Iterable[Tensor],
    device: torch.device,
    *,
    weight_range: str = "min_max",
    repair: Repair | None = None,
) -> tuple[str, ...]:
    """Calibrate, with all repairs that are asked for, and leave the quantizers FROZEN.

    One process's work. Equalization comes first, as it moves the ranges; then ranges, clipped
    weights, mixed precision; then AdaRound or bias correction, which mend what is left. All that
    they change lies in the detector's parameters and in quantizer state.

    Args:
        detector: Prepared, on ``device``.
        graph: Its graph.
        batches: Images ``(N, C, H, W)``; the first ones serve the repairs too.
        device: Where the detector is.
        weight_range: As in `dq.quant.recipe.Recipe`.
        repair: What to repair; None for nothing.

    Returns:
        Names of the quantizers that mixed precision raised.

    Raises:
        ValueError: As `calibrate`.
    """
    repair = repair or Repair()
    detector.eval()
    if "equalize" in repair.steps:
        equalize_(graph)
    kept = _Keeper(batches, repair.images)
    calibrate(detector, graph, kept, device)
    images = [batch.to(device) for batch in kept.batches]
    mends = bool({"adaround", "bias"} & set(repair.steps))
    # The reference is the float network, before any weight is clipped; only a repair is judged.
    check = first_images(images, CHECK_IMAGES) if mends else []
    wanted = float_outputs(graph, check) if mends else []
    originals = clip_weights_(graph) if weight_range == "mse" else {}
    if originals:
        initialise_weights_(graph.layers())
    raised: tuple[str, ...] = ()
    if repair.mixed is not None:
        few = first_images(images, repair.mixed.images)
        raised = choose_raised_(graph, few, sensitivities(graph, few), repair.mixed)
        restore_weights_(graph, {name: originals[name] for name in raised if name in originals})
        # Learned scales of what was raised were chosen for the clipped weights.
        initialise_weights_(graph.layers())
    for quantizer in graph.activations().values():
        if isinstance(quantizer.observer, HistogramObserver):
            quantizer.observer.settle_()
    give_headroom_(graph)
    set_phase(graph.quantizers, Phase.FROZEN)
    if mends:
        with _undone_if_worse(graph, check, wanted):
            if "adaround" in repair.steps:
                adaround_(graph, images, steps=repair.rounding_steps)
            else:
                correct_bias_(graph, images)
    return raised


@contextmanager
def _undone_if_worse(
    graph: QuantizedGraph, batches: Sequence[Tensor], wanted: Sequence[Sequence[Tensor]]
) -> Iterator[None]:
    """Put the model back as it was when the block has moved its outputs from what is wanted.

    Repairs work layer by layer; what is better for each layer may be worse for the whole.
    """
    state = {name: tensor.clone() for name, tensor in graph.root.state_dict().items()}
    set_phase(graph.quantizers, Phase.FROZEN)
    before = noise(graph, batches, wanted)
    yield
    set_phase(graph.quantizers, Phase.FROZEN)
    after = noise(graph, batches, wanted)
    log.info("SQNR on calibration images %.2f -> %.2f dB", decibel(before), decibel(after))
    if after > before:
        graph.root.load_state_dict(state)
        log.warning("AdaRound or bias correction made the outputs worse and is undone")


class _Keeper:
    """Hand batches on and keep the first images."""

    def __init__(self, batches: Iterable[Tensor], num_images: int) -> None:
        self.source = batches
        self.num_images = num_images
        self.batches: list[Tensor] = []

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.source:
            if sum(len(kept) for kept in self.batches) < self.num_images:
                self.batches.append(batch)
            yield batch


def first_images(batches: Iterable[Tensor], num_images: int) -> list[Tensor]:
    """Return batches, the last one cut, that hold so many images together."""
    found = []
    for batch in batches:
        found.append(batch[:num_images])
        num_images -= len(found[-1])
        if num_images <= 0:
            break
    return found


def run_network(detector: nn.Module, graph: QuantizedGraph, batch: Tensor) -> None:
    """Run all of a prepared detector's graphs on a batch, RoI heads included."""
    result = graph(batch)
    if graph.parts:
        run_roi_heads(detector, features_of(result), batch)


@contextmanager
def _equal_weights(quantizers: Sequence[ActivationQuantizer]) -> Iterator[Callable[[int], None]]:
    """Let moving averages weigh all batches alike inside the block: call with 1, 2, ..."""
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


@torch.no_grad()
def calibrate(
    detector: nn.Module, graph: QuantizedGraph, batches: Iterable[Tensor], device: torch.device
) -> int:
    """Observe every tensor over these images and leave the quantizers FROZEN with their ranges.

    One process's work. No gradients, batch norms in evaluation mode, nothing rounded meanwhile,
    so every range is that of the float model. Moving averages weigh all batches alike.

    Histograms go on collecting until they are settled.

    Args:
        detector: Prepared, on ``device``.
        graph: Its graph.
        batches: Images ``(N, C, H, W)``.
        device: Where the detector is.

    Returns:
        How many images were seen.

    Raises:
        ValueError: There were no images, or a quantizer has no range afterwards.
    """
    detector.eval()
    quantizers = graph.activations()
    observers = [q.observer for q in quantizers.values()]
    # The others fold all batches at once in the end, as if they were one.
    averages = [q for q in quantizers.values() if type(q.observer) is MovingAverageObserver]
    for observer in observers:
        if isinstance(observer, HistogramObserver):
            observer.collect_()
    set_phase(graph.quantizers, Phase.CALIBRATE)
    images, began = 0, time.monotonic()
    with _equal_weights(averages) as weigh:
        for number, batch in enumerate(batches, start=1):
            weigh(number)
            run_network(detector, graph, batch.to(device))
            update_scales_(averages)
            images += len(batch)
    update_scales_([q for q in quantizers.values() if q not in averages])
    if not images:
        raise ValueError("there is no image to calibrate with; data.train is empty")
    without = [name for name, quantizer in quantizers.items() if not quantizer.has_range]
    if without:
        raise ValueError(
            f"{len(without)} quantizers have no finite range after calibration (first"
            f" {without[0]}); the float model yields NaN or infinity there"
        )
    initialise_weights_(graph.layers())
    set_phase(graph.quantizers, Phase.FROZEN)
    log.info(
        "calibrated %d quantizers on %d images in %.0f s",
        len(quantizers),
        images,
        time.monotonic() - began,
    )
    return images
