"""One training step of a detector on one rank: losses, their sum, and what is logged of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmcv.runner.log_buffer import LogBuffer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dq.detector.batch import to_device
from dq.dist import collectives


def parse_losses(losses: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total loss and every component, as mmdet adds them up.

    mmdet's own version copies each component to the host and issues a collective for each; here
    they stay tensors until they are logged.

    Args:
        losses: What ``forward_train`` returns: tensors or lists of tensors; names with ``loss``
            in them count.
    """
    parts: dict[str, Tensor] = {}
    for name, value in losses.items():
        if isinstance(value, Tensor):
            parts[name] = value.mean()
        else:
            parts[name] = torch.stack([part.mean() for part in value]).sum()
    total = torch.stack([part for name, part in parts.items() if "loss" in name]).sum()
    logged = {name: part.detach() for name, part in parts.items()}
    logged["loss"] = total.detach()
    return total, logged


def training_step(
    model: nn.Module, data: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Compute the losses of a collated batch; mmcv's optimizer hook does the rest.

    Args:
        model: The detector, or what wraps it for data parallelism.
        data: What the training loader yields.
        device: Where the model is.

    Returns:
        ``loss`` (to call backward on), ``log_vars`` (tensors) and ``num_samples``.
    """
    inputs = to_device(data, device)
    loss, logged = parse_losses(model(**inputs))
    return {"loss": loss, "log_vars": logged, "num_samples": len(inputs["img_metas"])}


class ParallelDetector(DistributedDataParallel):
    """torch's DistributedDataParallel with the ``train_step`` that mmcv's runners call."""

    def train_step(self, data: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
        """Compute the losses of a batch; see `training_step`."""
        return training_step(self, data, next(self.module.parameters()).device)


def add_train_step(detector: nn.Module) -> None:
    """Give a detector that is alone the same ``train_step``, in place of mmdet's."""

    detector.__dict__["train_step"] = _TrainStep(detector)


@dataclass(slots=True)
class _TrainStep:
    """Stands in for a detector's ``train_step``; a copy of the detector trains itself."""

    detector: nn.Module

    def __call__(self, data: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
        return training_step(self.detector, data, next(self.detector.parameters()).device)


class LossLog(LogBuffer):  # type: ignore[misc]
    """mmcv's log buffer for tensors: one copy and one collective for each line of the log.

    Losses of the last steps stay on the device until they are logged; then their means travel
    together. Every rank must log at the same steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_averaged: int | None = None

    def average(self, n: int = 0) -> None:
        """Average the latest ``n`` values (0: all) over steps and ranks.

        Raises:
            RuntimeError: A loss is not finite on some rank.
        """
        if self.is_averaged == n:
            return  # Each of several loggers asks; one collective is enough for them.
        self.is_averaged = n
        tensors = {k: v for k, v in self.val_history.items() if isinstance(v[-1], Tensor)}
        if tensors:
            means = [torch.stack(v[-n:]).mean() for v in tensors.values()]
            flat = collectives.all_reduce_(torch.stack(means).double(), "mean").tolist()
            for name, mean in zip(tensors, flat, strict=True):
                self.output[name] = mean
            bad = [k for k, mean in zip(tensors, flat, strict=True) if not np.isfinite(mean)]
            if bad:
                raise RuntimeError(
                    f"{', '.join(bad)} is not finite; lower optimizer.lr or add"
                    " optimizer_config=dict(grad_clip=dict(max_norm=35, norm_type=2))"
                )
        for name in self.val_history.keys() - tensors.keys():
            values = np.array(self.val_history[name][-n:])
            counts = np.array(self.n_history[name][-n:])
            self.output[name] = float(np.sum(values * counts) / np.sum(counts))
        self.ready = True

    def update(self, vars: dict[str, Any], count: int = 1) -> None:
        """Record the values of a step, forgetting what no interval will average any more."""
        super().update(vars, count)
        self.is_averaged = None
        for name in vars:
            if len(self.val_history[name]) > 2000:
                del self.val_history[name][:1000]
                del self.n_history[name][:1000]

    def clear_output(self) -> None:
        """Forget what was logged, so that the next interval is averaged anew."""
        super().clear_output()
        self.is_averaged = None
