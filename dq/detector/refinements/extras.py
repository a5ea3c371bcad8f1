"""What a training does besides its steps, and the losses that it adds to the detector's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from mmcv.runner import Hook
from torch import Tensor, nn

from dq.detector.hooks.quantization import QuantEMAHook
from dq.detector.instance_methods import replace_method, replacements_kept
from dq.dist.exchange.data_parallel import sync_buffers_
from dq.quant.training.weight_average import WeightAverage

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
        watching: Contexts in which the steps run, for terms that need more than the graph's result.
        alone: Train on these losses alone.
    """

    def __init__(self, detector: nn.Module) -> None:
        self.detector = detector
        self.alone = False
        self.average: WeightAverage | None = None
        self.companions: dict[str, Any] = {}
        self.hooks: list[tuple[Hook, int]] = []
        self.terms: list[Terms] = []
        self.watching: list[Callable[[], AbstractContextManager[None]]] = []

    def keep(self, average: WeightAverage) -> None:
        """Keep this average of the weights, updated after each step."""
        self.average = self.companions["average"] = average
        # After the optimizer (40) and frozen weights (44), before the checkpoint (50).
        self.hooks.append((QuantEMAHook(average), 45))

    @contextmanager
    def losses(self) -> Iterator[None]:
        """Add the terms to the detector's losses, in the body."""
        with ExitStack() as contexts:
            for watch in self.watching:
                contexts.enter_context(watch())
            contexts.enter_context(added_losses(self.detector, self.terms, alone=self.alone))
            yield

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
