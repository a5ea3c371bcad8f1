"""One training step of a detector on one rank: its losses and their sum, for mmcv's runners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmcv.parallel import MMDataParallel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dq.detector.loading.to_device import to_device
from dq.detector.step.losses import LossValues


def parse_losses(losses: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total loss and every component, as mmdet adds them up.

    mmdet's own version runs a copy to the host and a collective for each component. Here they stay
    tensors until they are logged.

    Args:
        losses: Result of ``forward_train``: tensors or lists of tensors; names that contain
            ``loss`` are added up.
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
        model: The detector, or its wrapper for data parallelism.
        data: A batch of the training loader.
        device: Device of the model.

    Returns:
        As mmdet's detectors: ``loss`` (to call backward on), ``log_vars`` (by name, read as
        numbers) and ``num_samples``.
    """
    inputs = to_device(data, device)
    loss, logged = parse_losses(model(**inputs))
    return {"loss": loss, "log_vars": LossValues(logged), "num_samples": len(inputs["img_metas"])}


def validation_step(
    model: nn.Module, data: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Compute the losses of a validation batch, which mmdet logs as ``<name>_val``."""
    outputs = training_step(model, data, device)
    named = {f"{name}_val": loss for name, loss in outputs["log_vars"].tensors.items()}
    return {**outputs, "log_vars": LossValues(named)}


class ParallelDetector(DistributedDataParallel):
    """torch's DistributedDataParallel with the methods that mmcv's runners call."""

    def train_step(self, data: Mapping[str, Any], optimizer: Any = None) -> dict[str, Any]:
        """Compute the losses of a batch; see `training_step`."""
        return training_step(self, data, next(self.module.parameters()).device)

    def val_step(self, data: Mapping[str, Any], optimizer: Any = None) -> dict[str, Any]:
        """Compute the losses of a validation batch; see `validation_step`."""
        return validation_step(self, data, next(self.module.parameters()).device)


class LoneDetector(MMDataParallel):  # type: ignore[misc]
    """A detector on a single rank, in mmdet's wrapper for this case.

    Hooks access the detector as ``runner.model.module`` for any number of ranks.

    Args:
        module: The detector, on its device; it is neither copied nor moved.
    """

    def __init__(self, module: nn.Module) -> None:
        # MMDataParallel's own constructor would move the module to the GPUs that it finds.
        nn.Module.__init__(self)
        self.module, self.dim = module, 0
        device = next(module.parameters()).device
        on_gpu = device.type == "cuda"
        index = 0 if device.index is None else device.index
        self.device_ids = [index] if on_gpu else []
        self.output_device = index if on_gpu else None
        self.src_device_obj = torch.device("cuda", index) if on_gpu else device

    def train_step(self, data: Mapping[str, Any], optimizer: Any = None) -> dict[str, Any]:
        """Compute the losses of a batch; see `training_step`."""
        return training_step(self.module, data, next(self.module.parameters()).device)

    def val_step(self, data: Mapping[str, Any], optimizer: Any = None) -> dict[str, Any]:
        """Compute the losses of a validation batch; see `validation_step`."""
        return validation_step(self.module, data, next(self.module.parameters()).device)
