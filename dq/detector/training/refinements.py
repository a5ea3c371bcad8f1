"""Optional methods of a quantized training besides fake quantization, built from its settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from types import MappingProxyType
from typing import Any

import torch
from mmcv.runner import Hook
from torch import Tensor, nn

from dq.counted import counted
from dq.detector.hooks.quantization import OscillationHook, QuantEMAHook
from dq.detector.hooks.weight_average import AverageRule, averaged_by
from dq.detector.instance_methods import replace_method, replacements_kept
from dq.detector.loading.to_device import to_device
from dq.dist.exchange.data_parallel import sync_buffers_
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.training.distillation import Distillation
from dq.quant.training.norm_reestimation import reestimate_norms_
from dq.quant.training.oscillation import OscillationTracker
from dq.quant.training.refinements import Refinements
from dq.quant.training.schedule import Schedule
from dq.quant.training.weight_average import WeightAverage

log = logging.getLogger(__name__)

Terms = Callable[[], Mapping[str, Tensor]]


class Extras:
    """What a training does besides its steps. A float one has at most an average of the weights.

    Args:
        detector: On its device.

    Attributes:
        average: Average of the weights, or None; None after `finish`.
        companions: Objects with state to resume, by name.
        hooks: mmcv hooks with their priorities; all come after the optimizer's.
        terms: Losses in addition to the detector's own.
        alone: Train on these losses alone.
    """

    def __init__(self, detector: nn.Module) -> None:
        self.detector = detector
        self.alone = False
        self.average: WeightAverage | None = None
        self.companions: dict[str, Any] = {}
        self.hooks: list[tuple[Hook, int]] = []
        self.terms: list[Terms] = []

    def keep(self, average: WeightAverage) -> None:
        """Keep this average of the weights, updated after each step."""
        self.average = self.companions["average"] = average
        # After the optimizer (40) and frozen weights (44), before the checkpoint (50).
        self.hooks.append((QuantEMAHook(average), 45))

    @torch.no_grad()
    def finish(self, loader: Any, device: torch.device) -> None:
        """Load the weight average into the detector.

        Every rank must call it, after the last step.

        Args:
            loader: Loader of training batches.
            device: Device of the detector.
        """
        if self.average is not None:
            self.average.swap_()
            self.average = None
            sync_buffers_(self.detector)


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
            distillation = Distillation(graph, settings.distill, originals)
            self.network = self.companions["teacher"] = distillation
            self.terms.append(distillation.losses)
            self.alone = settings.distill.alone
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


@contextmanager
def added_losses(
    detector: nn.Module, terms: Sequence[Terms], *, alone: bool = False
) -> Iterator[None]:
    """Add loss terms to the result of the detector's ``forward_train``, in the body.

    They are computed within the forward pass, so DDP handles their gradients like all others.

    Args:
        detector: Unwrapped.
        terms: Called after each forward pass; names that contain ``loss`` are added up.
        alone: Compute these terms only. The detector's own losses, and the annotations that they
            need, are not used.
    """
    if not terms:
        yield
        return
    original: Any = detector.forward_train

    def forward_train(*args: Any, **kwargs: Any) -> dict[str, Any]:
        losses = dict(original(*args, **kwargs))
        for term in terms:
            losses.update(term())
        return losses

    def forward_unlabelled(img: Tensor, *_: Any, **__: Any) -> dict[str, Any]:
        detector.extract_feat(img)  # type: ignore[operator]
        return {name: value for term in terms for name, value in term().items()}

    with replacements_kept([(detector, "forward_train")]):
        replace_method(detector, "forward_train", forward_unlabelled if alone else forward_train)
        yield
