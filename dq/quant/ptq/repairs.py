"""Calibration with all methods that reduce the loss of plain post-training quantization."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dq.quant.analysis.sensitivity import decibel, float_outputs, noise, sensitivities
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.observers.histogram import HistogramObserver
from dq.quant.ptq.calibration import calibrate_
from dq.quant.ptq.mixed_precision import choose_raised_
from dq.quant.ptq.settings import STEPS, Repair, RepairStep
from dq.quant.ptq.weight_clipping import clip_weights_, restore_weights_
from dq.quant.ptq.widths import add_headroom_
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.phase import Phase, set_phase

log = logging.getLogger(__name__)

# A repair must show on this many calibration images that it helps.
CHECK_IMAGES = 32


def calibrate_and_repair_(
    graph: QuantizedGraph,
    batches: Iterable[Any],
    run: Callable[[Any], int],
    device: torch.device,
    *,
    weight_range: str = "min_max",
    repair: Repair | None = None,
) -> tuple[str, ...]:
    """Calibrate, with all requested repairs; leave the quantizers FROZEN.

    Runs in one process. Repairs that change ranges (equalization) come first; then ranges, clipped
    weights and mixed precision; then the other repairs, which reduce the remaining error (AdaRound,
    bias correction). All changes are in the model's parameters and in quantizer state.

    Args:
        graph: Of the prepared model.
        batches: Arguments of ``run``. Repairs other than equalization need tensors ``(N, ...)``, on
            any device, and use the first ones too.
        run: Runs the graph and all its parts on a batch, and returns its number of images.
        device: Where the model is.
        weight_range: As in `dq.quant.recipes.recipe.Recipe`.
        repair: What to repair; None for nothing.

    Returns:
        Names of the quantizers that mixed precision raised.

    Raises:
        ValueError: As `dq.quant.ptq.calibration.calibrate_`.
    """
    repair = repair or Repair()
    graph.root.eval()
    steps = chosen_steps(repair)
    for step in steps:
        if step.changes_ranges:
            step.apply(graph, [], repair)
    kept = _KeepFirst(batches, repair.images)
    calibrate_(graph, kept, run)
    later = [step for step in steps if not step.changes_ranges]
    needs_images = bool(later) or repair.mixed is not None
    images = [batch.to(device) for batch in kept.batches] if needs_images else []
    # The reference is the float network before any weight is clipped; only repairs are judged.
    check = first_images(images, CHECK_IMAGES) if later else []
    wanted = float_outputs(graph, check) if later else []
    originals = clip_weights_(graph) if weight_range == "mse" else {}
    if originals:
        initialise_weights_(graph.layers())
    raised: tuple[str, ...] = ()
    if repair.mixed is not None:
        few = first_images(images, repair.mixed.images)
        raised = choose_raised_(graph, few, sensitivities(graph, few), repair.mixed)
        restore_weights_(graph, {name: originals[name] for name in raised if name in originals})
        # Learned scales of raised quantizers were chosen for the clipped weights.
        initialise_weights_(graph.layers())
    for quantizer in graph.activations().values():
        if isinstance(quantizer.observer, HistogramObserver):
            quantizer.observer.stop_collecting_()
    add_headroom_(graph)
    set_phase(graph.quantizers, Phase.FROZEN)
    for step in later:
        with _undone_if_worse(graph, check, wanted):
            step.apply(graph, images, repair)
    return raised


def chosen_steps(repair: Repair) -> list[RepairStep]:
    """Return the steps of these settings in their order, but none that another one includes."""
    found: dict[str, RepairStep] = {
        name: importlib.import_module(f"dq.quant.ptq.{module}").REPAIR
        for name, module in STEPS.items()
        if name in repair.steps
    }
    included = {name for step in found.values() for name in step.includes}
    return [step for name, step in found.items() if name not in included]


@contextmanager
def _undone_if_worse(
    graph: QuantizedGraph, batches: Sequence[Tensor], wanted: Sequence[Sequence[Tensor]]
) -> Iterator[None]:
    """Restore the model if the body has increased the error of its outputs.

    Repairs work layer by layer; an improvement of each layer may be worse for the whole.
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
        log.warning("a repair (AdaRound, bias correction) made the outputs worse and is undone")


class _KeepFirst:
    """Pass batches on and keep the first images."""

    def __init__(self, batches: Iterable[Any], num_images: int) -> None:
        self.source = batches
        self.num_images = num_images
        self.batches: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in self.source:
            if sum(len(kept) for kept in self.batches) < self.num_images:
                self.batches.append(batch)
            yield batch


def first_images(batches: Iterable[Tensor], num_images: int) -> list[Tensor]:
    """Return the first batches with this many images in total; the last batch may be cut."""
    found = []
    for batch in batches:
        found.append(batch[:num_images])
        num_images -= len(found[-1])
        if num_images <= 0:
            break
    return found
