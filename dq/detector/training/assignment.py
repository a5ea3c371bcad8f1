"""The arguments of a training: its surroundings, its quantization, the checkpoint to resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dq.detector.hooks.tracking import Figures
from dq.detector.step.supervision import Supervision
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.recipes.recipe import Recipe
from dq.quant.training.refinements import Refinements
from dq.quant.training.schedule import Schedule
from dq.quant.training.weight_average import Ema
from dq.tracking.tracker import Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A checkpoint to continue a training from.

    Attributes:
        content: Content of the file, equal on all ranks; tensors of this rank are inserted.
        source: Its name, for messages.
        new_optimizer_settings: Take the optimizer's settings from the config.
        new_micro_batches: Take the number of micro-batches of a step from the config.
    """

    content: dict[str, Any]
    source: str
    new_optimizer_settings: bool = False
    new_micro_batches: bool = False

    @property
    def chunks_per_step(self) -> int | None:
        """Number of micro-batches of a step over all ranks; None to use the config's."""
        if self.new_micro_batches:
            return None
        found: int | None = self.content.get("training", {}).get("chunks_per_step")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """A prepared detector's graph and the settings of its training.

    Attributes:
        graph: With ranges, before the first step.
        recipe: The recipe that the graph was prepared with.
        schedule: When the quantizers observe, fake-quantize and freeze.
        refinements: Optional methods of QAT.
        start: Metrics on ``data.val`` before training, or None if they are unknown.
        most_update: Largest update of a layer's weights in one step, relative to their norm; rates
            of other layers are lowered. None to leave all rates as they are.
        originals: The float model's values of weights that calibration has clipped or repaired, for
            the teacher of distillation.
    """

    graph: QuantizedGraph
    recipe: Recipe
    schedule: Schedule
    refinements: Refinements = field(default_factory=Refinements)
    start: Mapping[str, float] | None = None
    most_update: float | None = None
    originals: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued:
    """How a float detector is trained further, as the control of a quantized training.

    Attributes:
        schedule: Of the quantized training; only the phase of batch norms matters.
        ema: Average of the weights, or None.
        most_update: As in `Quantization`.
    """

    schedule: Schedule
    ema: Ema | None = None
    most_update: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The result of a training.

    Attributes:
        detector: Not wrapped by DDP.
        best: Name of the checkpoint whose weights it has; None for those of the last step.
        last_drop: How far the last evaluation was below the start, 0 to 1; 0 if it was not.
    """

    detector: nn.Module
    best: str | None = None
    last_drop: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """The surroundings of a training: folder, device, supervision and tracking.

    Attributes:
        work_dir: Folder for checkpoints and logs.
        device: The device of the detector.
        supervision: Watches the training: signals, guards, clocks.
        tracker: Records the training; its run's id is written into each checkpoint's ``meta``.
            None to record nothing.
        figures: Measures all quantizers after each epoch.
        key: Digest of everything that decides the result; written into each checkpoint's ``meta``.
        meta: Further entries for each checkpoint's ``meta``.
        trusted: Whether the file of ``load_from`` may be unpickled.
    """

    work_dir: Path
    device: torch.device
    supervision: Supervision = field(default_factory=Supervision)
    tracker: Tracker | None = None
    figures: Figures | None = None
    key: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    trusted: bool = False
