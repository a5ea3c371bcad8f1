"""What the parts of a model (RoI heads) get as inputs, in float and fake-quantized.

A part runs on boxes that the model itself proposes. Rounding would change the boxes, and then
nothing could be compared. So the boxes are those of the float model in all runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dq.quant.analysis.sensitivity import Calls
from dq.quant.graph.nodes import Given
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.layer_walk import fake_quantizing
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase, watching_inputs

log = logging.getLogger(__name__)


class PartRunner(Protocol):
    """Runs a model and its parts in two steps, with the phases that its quantizers have."""

    def features(self, images: Tensor) -> Any:
        """Return what the graph computes for the parts from images ``(N, C, H, W)``."""

    def run(self, features: Any, images: Tensor, boxes: Any = None) -> Any:
        """Run all parts on these boxes, None for the model's own; return the boxes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInputs:
    """The inputs of all parts on some images.

    Attributes:
        graph: The graph of the prepared model.
        runner: Runs it.
        images: Batches on the model's device.
        boxes: The float model's boxes, one entry for each batch.
        plain: The inputs of each call in float, by part. Calls without boxes are left out.
    """

    graph: QuantizedGraph
    runner: PartRunner
    images: Sequence[Tensor]
    boxes: Sequence[Any]
    plain: Calls

    def features(self) -> list[Any]:
        """Return the fake-quantized features of all images, for `rounded`."""
        with torch.no_grad(), fake_quantizing(self.graph):
            return [self.runner.features(images) for images in self.images]

    def rounded(self, part: str, features: Sequence[Any]) -> list[Given]:
        """Return the inputs of each call of a part as the quantized model has them at present."""
        with torch.no_grad(), fake_quantizing(self.graph), captured(self.graph, [part]) as calls:
            for given, images, boxes in zip(features, self.images, self.boxes, strict=True):
                self.runner.run(given, images, boxes)
        return calls[part]


def part_inputs(graph: QuantizedGraph, runner: PartRunner, images: Sequence[Tensor]) -> PartInputs:
    """Run a model in float and return the inputs of its parts.

    Args:
        graph: Prepared, in evaluation mode, with float weights that are not repaired yet.
        runner: Runs it.
        images: Batches on the model's device.
    """
    with torch.no_grad(), in_phase(graph.quantizers, Phase.OFF), captured(graph) as calls:
        boxes = [runner.run(runner.features(batch), batch) for batch in images]
    missing = [part for part, found in calls.items() if not found]
    if missing:
        log.warning("no boxes reach %s on these images; not repaired", ", ".join(missing))
    return PartInputs(graph=graph, runner=runner, images=images, boxes=boxes, plain=calls)


@contextmanager
def captured(
    graph: QuantizedGraph, parts: Sequence[str] | None = None
) -> Iterator[dict[str, list[Given]]]:
    """Keep the inputs of each call of these parts in the body, all parts if None.

    Calls without boxes, whose first dimension is empty, are left out.
    """
    found: dict[str, list[Given]] = {part: [] for part in (graph.parts if parts is None else parts)}

    def hook_of(part: str) -> Callable[..., None]:
        def hook(_: object, inputs: tuple[Tensor, ...]) -> None:
            if all(len(x) for x in inputs):
                found[part].append(tuple(x.detach().clone() for x in inputs))

        return hook

    root = graph.root
    with watching_inputs({root.get_submodule(part): hook_of(part) for part in found}):
        yield found


def rows_of(calls: Sequence[Given], most: int) -> list[Given]:
    """Return the same inputs in calls of at most this many images or boxes."""
    found: list[Given] = []
    for call in calls:
        if isinstance(call, Tensor):
            found += torch.split(call, most)
        else:
            found += zip(*(torch.split(x, most) for x in call), strict=True)
    return found
