"""Optional methods of a quantized training besides fake quantization, built from its settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import chain, islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from dq.counted import counted
from dq.detector.hooks.quantization import OscillationHook
from dq.detector.hooks.weight_average import AverageRule, averaged_by
from dq.detector.loading.to_device import to_device
from dq.detector.refinements.extras import Extras
from dq.detector.refinements.roi_distillation import RoIDistillation
from dq.dist.exchange.data_parallel import sync_buffers_
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.training.distillation import Distill, Distillation
from dq.quant.training.norm_reestimation import reestimate_norms_
from dq.quant.training.oscillation import OscillationTracker
from dq.quant.training.refinements import Refinements
from dq.quant.training.schedule import Schedule
from dq.quant.training.weight_average import WeightAverage

log = logging.getLogger(__name__)


class Refinery(Extras):
    """The optional methods of one quantized training.

    Args:
        detector: Prepared, on its device, before the first step.
        graph: Its graph.
        schedule: Schedule of the training.
        settings: Which methods to use.
        rule: Rule of an EMA hook in the config; the settings have priority.
        originals: The float model's values of weights that calibration has changed.

    Attributes:
        network: What the detector's methods call as the graph.
    """

    def __init__(
        self,
        detector: nn.Module,
        graph: QuantizedGraph,
        schedule: Schedule,
        settings: Refinements,
        rule: AverageRule | None = None,
        *,
        originals: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        super().__init__(detector)
        self.graph, self.schedule = graph, schedule
        self.network: Callable[[Tensor], Any] = graph
        if settings.distill is not None:
            self._distil(settings.distill, originals)
        if settings.oscillation is not None:
            tracker = OscillationTracker(graph, settings.oscillation)
            hook = OscillationHook(tracker, schedule)
            self.hooks.append((hook, 44))
            self.companions["oscillation"] = tracker
            if settings.oscillation.dampening:
                self.terms.append(hook.losses)
        if settings.ema is not None:
            self.keep(WeightAverage(detector, settings.ema.momentum))
        elif rule is not None:
            self.keep(averaged_by(rule, detector))

    def _distil(self, settings: Distill, originals: Mapping[str, Tensor]) -> None:
        """Give the detector a teacher. Without labels no RoI head is trained, so none has one."""
        self.alone = settings.alone
        distillation: Distillation
        if self.graph.parts and not settings.alone:
            distillation = RoIDistillation(self.detector, self.graph, settings, originals)
            self.watching.append(distillation.watching)
        else:
            distillation = Distillation(self.graph, settings, originals)
        self.network = self.companions["teacher"] = distillation
        self.terms.append(distillation.losses)

    @torch.no_grad()
    def finish(self, loader: Any, device: torch.device) -> None:
        """Load the weight average into the detector, and re-estimate its norms if requested."""
        super().finish(loader, device)
        if self.schedule.norm_batches:
            set_phase(self.graph.quantizers, Phase.FROZEN)
            steps = chain.from_iterable(loader.steps(0))
            batches = islice(steps, self.schedule.norm_batches)
            images = (to_device(batch, device)["img"] for batch in batches)
            number = reestimate_norms_(self.graph, images, merge_=sync_buffers_)
            log.info("running statistics are those of %s", counted(number, "training batch[es]"))
