"""Calibration with all methods that reduce the loss of plain post-training quantization."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from dq.quant.analysis.sensitivity import (
    Calls,
    Sensitivity,
    decibel,
    float_outputs,
    noise,
    sensitivities,
)
from dq.quant.graph.nodes import Given
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.observers.histogram import HistogramObserver
from dq.quant.ptq.calibration import calibrate_
from dq.quant.ptq.layer_walk import float_copy
from dq.quant.ptq.mixed_precision import choose_raised_
from dq.quant.ptq.parts import PartInputs, PartRunner, part_inputs
from dq.quant.ptq.settings import STEPS, Repair, RepairStep, Samples
from dq.quant.ptq.weight_clipping import clip_weights_, restore_weights_
from dq.quant.ptq.widths import add_headroom_
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.phase import Phase, set_phase

log = logging.getLogger(__name__)

# A repair must show on this many calibration images that it helps.
CHECK_IMAGES = 16
# Images whose boxes the repairs of parts (RoI heads) use; each has up to a hundred boxes.
PART_IMAGES = 16


class Calibration:
    """A calibration with all requested repairs, on one process.

    `find_ranges_` does the repairs that change ranges, such as equalization; then it finds ranges
    and clips weights. Mixed precision needs `sensitivities`, which several processes can
    measure together in between. `finish_` does the other repairs, such as bias correction, which
    reduce the remaining error. All changes are in the model's parameters and in quantizer state.

    Args:
        graph: The graph of the prepared model.
        run: Runs the graph and all its parts on a batch, and returns its number of images.
        device: Where the model is.
        weight_range: As in `dq.quant.recipes.recipe.Recipe`.
        repair: What to repair; None for nothing.
        parts: Runs the parts on given boxes; None limits repairs of parts to those that change
            ranges.
    """

    def __init__(
        self,
        graph: QuantizedGraph,
        run: Callable[[Any], int],
        device: torch.device,
        *,
        weight_range: str = "min_max",
        repair: Repair | None = None,
        parts: PartRunner | None = None,
    ) -> None:
        self.graph = graph
        self.run = run
        self.device = device
        self.weight_range = weight_range
        self.repair = repair or Repair()
        steps = chosen_steps(self.repair)
        self._first = [step for step in steps if step.changes_ranges]
        self._later = [step for step in steps if not step.changes_ranges]
        self._images: list[Tensor] = []
        self._wanted: dict[str, list[list[Tensor]]] = {}
        self._runner = parts
        self._parts: PartInputs | None = None
        self._unclipped: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._reference: nn.Module | None = None

    def find_ranges_(self, batches: Iterable[Any]) -> None:
        """Apply the first repairs, find the ranges, clip weights; leave the quantizers FROZEN.

        Args:
            batches: Arguments of ``run``. Later repairs use the first ones again, which must be
                tensors ``(N, ...)``, on any device.

        Raises:
            ValueError: As `dq.quant.ptq.calibration.calibrate_`.
        """
        graph, repair = self.graph, self.repair
        graph.root.eval()
        if self._first:
            batches = iter(batches)
            first = list(islice(batches, 1))
            images = [b.to(self.device) for b in first if isinstance(b, Tensor)]
            for step in self._first:
                step.run(graph, Samples(rounded=images, plain=images), repair, None)
                for part in graph.parts.values() if step.in_parts else ():
                    step.run(part, Samples(rounded=(), plain=()), repair, None)
            batches = chain(first, batches)
        kept = _KeepFirst(batches, repair.images)
        calibrate_(graph, kept, self.run)
        if self._later or repair.mixed is not None:
            self._images = [batch.to(self.device) for batch in kept.batches]
            if graph.parts and self._runner is not None:
                few = first_images(self._images, PART_IMAGES)
                self._parts = part_inputs(graph, self._runner, few)
        if self._later or self.weight_range == "mse":
            self._before = {k: v.clone() for k, v in _weights(graph).items()}
        # The reference is the float network before any weight is clipped; only repairs are judged.
        if self._later:
            self._wanted[""] = float_outputs(graph, self._check)
            for name, calls in self.part_calls.items():
                self._wanted[name] = float_outputs(graph.parts[name], calls)
            if any(step.compare is not None for step in self._later):
                self._reference = float_copy(graph.root)
        if self.weight_range == "mse":
            for network in graph.networks.values():
                self._unclipped |= clip_weights_(network)
        if self._unclipped:
            initialise_weights_(graph.all_layers())

    @property
    def _check(self) -> list[Tensor]:
        return first_images(self._images, CHECK_IMAGES)

    @property
    def few_images(self) -> list[Tensor]:
        """The images to measure sensitivities on; empty without mixed precision."""
        mixed = self.repair.mixed
        return [] if mixed is None else first_images(self._images, mixed.images)

    @property
    def part_calls(self) -> Calls:
        """The float inputs of each part that has any, to measure sensitivities on."""
        found = {} if self._parts is None else self._parts.plain
        return {part: calls for part, calls in found.items() if calls}

    def finish_(self, found: Sequence[Sensitivity] = ()) -> tuple[str, ...]:
        """Raise the most sensitive quantizers and repair; leave the quantizers FROZEN.

        Args:
            found: The sensitivities; not used without mixed precision.

        Returns:
            Names of the quantizers that mixed precision raised.
        """
        graph, repair = self.graph, self.repair
        raised: tuple[str, ...] = ()
        if repair.mixed is not None:
            raised = choose_raised_(graph, self.few_images, found, repair.mixed, self.part_calls)
            changed = {n: self._unclipped[n] for n in raised if n in self._unclipped}
            for network in graph.networks.values():
                restore_weights_(network, changed)
            # Learned scales of raised quantizers were chosen for the clipped weights.
            initialise_weights_(graph.all_layers())
        for quantizer in graph.activations().values():
            if isinstance(quantizer.observer, HistogramObserver):
                quantizer.observer.stop_collecting_()
        add_headroom_(graph)
        set_phase(graph.quantizers, Phase.FROZEN)
        for step in self._later:
            with _undone_if_worse(graph, self._check, self._wanted[""]):
                images = self._images
                if step.most_images is not None:
                    images = first_images(images, step.most_images)
                samples = Samples(rounded=images, plain=images)
                step.run(graph, samples, repair, self._reference)
            if step.in_parts and self._parts is not None:
                self._repair_parts_(step, self._parts)
        return raised

    def originals(self) -> dict[str, Tensor]:
        """Return the original values of all weights that clipping and later repairs have changed.

        They are those of the float model, after the repairs that change ranges (equalization).
        """
        now = _weights(self.graph)
        return {k: v for k, v in self._before.items() if not torch.equal(v, now[k])}

    def _repair_parts_(self, step: RepairStep, inputs: PartInputs) -> None:
        """Repair each part on the inputs that the repaired parts before it leave."""
        features = inputs.features()
        for part, plain in self.part_calls.items():
            network = self.graph.parts[part]
            rounded = inputs.rounded(part, features)
            with _undone_if_worse(network, rounded, self._wanted[part], part):
                samples = Samples(rounded=rounded, plain=plain)
                step.run(network, samples, self.repair, self._reference)


def calibrate_and_repair_(
    graph: QuantizedGraph,
    batches: Iterable[Any],
    run: Callable[[Any], int],
    device: torch.device,
    *,
    weight_range: str = "min_max",
    repair: Repair | None = None,
    parts: PartRunner | None = None,
) -> tuple[str, ...]:
    """Calibrate, with all requested repairs; leave the quantizers FROZEN.

    Args:
        graph: As for `Calibration`.
        batches: As for `Calibration.find_ranges_`.
        run: As for `Calibration`.
        device: As for `Calibration`.
        weight_range: As for `Calibration`.
        repair: As for `Calibration`.
        parts: As for `Calibration`.

    Returns:
        Names of the quantizers that mixed precision raised.

    Raises:
        ValueError: As `dq.quant.ptq.calibration.calibrate_`.
    """
    calibration = Calibration(
        graph, run, device, weight_range=weight_range, repair=repair, parts=parts
    )
    calibration.find_ranges_(batches)
    few = calibration.few_images
    return calibration.finish_(sensitivities(graph, few, calibration.part_calls) if few else ())


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
    graph: QuantizedGraph,
    batches: Sequence[Given],
    wanted: Sequence[Sequence[Tensor]],
    part: str = "",
) -> Iterator[None]:
    """Restore the model if the body has increased the error of its outputs, or made it NaN.

    Repairs work layer by layer; an improvement of each layer may be worse for the whole.
    """
    state = {name: tensor.clone() for name, tensor in graph.root.state_dict().items()}
    set_phase(graph.quantizers, Phase.FROZEN)
    before = noise(graph, batches, wanted)
    yield
    set_phase(graph.quantizers, Phase.FROZEN)
    after = noise(graph, batches, wanted)
    where = f"{part} on calibration images" if part else "on calibration images"
    log.info("SQNR %s %.2f -> %.2f dB", where, decibel(before), decibel(after))
    if not after <= before:
        graph.root.load_state_dict(state)
        log.warning(
            "a repair made the outputs%s worse and is undone",
            f" of {part}" if part else "",
        )


def _weights(graph: QuantizedGraph) -> dict[str, Tensor]:
    state = graph.root.state_dict()
    return {k: v for k, v in state.items() if not k.startswith(f"{CONTAINER}.")}


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
