"""What a training is given: where it runs, what it quantizes, what it continues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dq.detector.hooks.tracking import Figures
from dq.detector.step.supervision import Supervision
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.recipes.recipe import Recipe
from dq.quant.training.refinements import Refinements
from dq.quant.training.schedule import Schedule
from dq.tracking.tracker import Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A checkpoint to continue a training from.

    Attributes:
        content: As read, the same on all ranks; tensors of this rank are put into it.
        source: Its name, for messages.
        new_optimizer_settings: The optimizer's settings are to be the config's, not its own.
        new_micro_batches: So are the micro-batches of a step.
    """

    content: dict[str, Any]
    source: str
    new_optimizer_settings: bool = False
    new_micro_batches: bool = False

    @property
    def chunks_per_step(self) -> int | None:
        """Micro-batches of one step over all ranks; None for what the config says."""
        if self.new_micro_batches:
            return None
        found: int | None = self.content.get("training", {}).get("chunks_per_step")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """A prepared detector's graph and how to train it, its weights still the float model's.

    Attributes:
        graph: With ranges.
        recipe: What it was prepared with.
        schedule: When it observes, rounds and freezes.
        refinements: Extras.
        start: Its metrics on ``data.val`` as it is, where they are known.
    """

    graph: QuantizedGraph
    recipe: Recipe
    schedule: Schedule
    refinements: Refinements = field(default_factory=Refinements)
    start: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """Where a training runs, who watches it and what is kept of it.

    Attributes:
        work_dir: Where checkpoints and logs go.
        device: Where the detector is.
        supervision: Who watches the training.
        tracker: Takes what is worth keeping; its run's id goes into each checkpoint's ``meta``.
            None for nobody.
        figures: Measures all quantizers after each epoch.
        key: Digest of what decides the result; kept in each checkpoint's ``meta``.
        meta: More for each checkpoint's ``meta``.
        trusted: Whether the file that ``load_from`` names may be unpickled.
    """

    work_dir: Path
    device: torch.device
    supervision: Supervision = field(default_factory=Supervision)
    tracker: Tracker | None = None
    figures: Figures | None = None
    key: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    trusted: bool = False
