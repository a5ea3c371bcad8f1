"""An exponential moving average of a model's weights that keeps its quantizers consistent.

Parameters, including learned scales, and running statistics of norms are averaged. Other state is
copied: a scale, its integer zero point and its range must match, a range may still be infinite, and
observed ranges already are moving averages. Learned quantizer parameters are copied too while their
phase does not train them, because an average would drift away from a frozen scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dq.quant.graph.quantized_graph import CONTAINER
from dq.quant.quantizers.phase import Phase, Phased


@dataclass(frozen=True, slots=True, kw_only=True)
class Ema:
    """How weights are averaged.

    Attributes:
        momentum: Weight of a new step. The first steps use larger ones, ``9 / (10 + n)`` in the
            ``n``-th, so that a short training forgets its start.
    """

    momentum: float = 0.001

    def __post_init__(self) -> None:
        if not 0.0 < self.momentum < 1.0:
            raise ValueError(f"quant.ema.momentum is {self.momentum}; use 0 to 1, such as 0.001")


class WeightAverage:
    """Average a model's state over steps, and swap the average with the model's state.

    Args:
        model: On its device, prepared or not; its tensors must stay the same objects.
        momentum: As in `Ema`; or a function from the step number, counted from 0, to the weight of
            that step, or to None if the step is skipped.
        skip_buffers: Copy running statistics instead of averaging them.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float | Callable[[int], float | None],
        *,
        skip_buffers: bool = False,
    ) -> None:
        self.momentum, self.num_updates, self.swapped = momentum, 0, False
        self.live = model.state_dict()
        self.values = {name: value.clone() for name, value in self.live.items()}
        parameters = {name for name, _ in model.named_parameters()}
        self.averaged = [
            name
            for name, value in self.live.items()
            if value.is_floating_point()
            and (name in parameters or not (skip_buffers or name.startswith(f"{CONTAINER}.")))
        ]
        self.copied = [name for name in self.live if name not in set(self.averaged)]
        self.learners = {
            f"{prefix}.{name}": module
            for prefix, module in model.named_modules()
            if isinstance(module, Phased)
            for name, _ in module.named_parameters(recurse=False)
        }

    @torch.no_grad()
    def update_(self, step: int | None = None) -> None:
        """Update the average with the model's present state; call it after the optimizer step.

        Args:
            step: The training's number of this step; by default the average's own count.
        """
        assert not self.swapped
        weight = self._weight(self.num_updates if step is None else step)
        self.num_updates += 1
        resting = {
            name
            for name, module in self.learners.items()
            if module.training and module.phase is not Phase.TRAIN
        }
        averaged = [name for name in self.averaged if name not in resting]
        if weight is not None:
            torch._foreach_lerp_(
                [self.values[n] for n in averaged], [self.live[n] for n in averaged], weight
            )
        for name in (*self.copied, *resting):
            self.values[name].copy_(self.live[name])

    def _weight(self, step: int) -> float | None:
        if callable(self.momentum):
            return self.momentum(step)
        return max(self.momentum, 9.0 / (11.0 + self.num_updates))

    @torch.no_grad()
    def swap_(self) -> None:
        """Swap average and model; a second call swaps back."""
        for name, value in self.values.items():
            own = self.live[name].clone()
            self.live[name].copy_(value)
            value.copy_(own)
        self.swapped = not self.swapped

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Put the average into the model in the body."""
        self.swap_()
        try:
            yield
        finally:
            self.swap_()

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs in addition to the model; call it while swapped.

        The model's own state dict then holds the average, and this holds the training's weights.
        """
        assert self.swapped
        return {"values": dict(self.values), "num_updates": self.num_updates}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; the model must have loaded it, and so holds the average."""
        for name, value in self.values.items():
            value.copy_(state["values"][name])
        self.num_updates = state["num_updates"]
        self.swap_()
        self.swapped = False

    @torch.no_grad()
    def begin_(self) -> None:
        """Restart from the model's present state."""
        self.num_updates = 0
        for name, value in self.values.items():
            value.copy_(self.live[name])
