"""Convert mmcv's collated DataContainers to tensors on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmcv.parallel import DataContainer
from torch import Tensor


def to_device(value: Any, device: torch.device) -> Any:
    """Return a collated batch without containers, with its tensors on ``device``.

    mmcv's own scatter calls internals of torch that have changed. Each rank has one device, so
    nothing needs to be scattered.

    Args:
        value: A batch of the data loader: containers, tensors, mappings and lists of them.
        device: Device of the tensors; metadata stays on the CPU.
    """
    if isinstance(value, DataContainer):
        first = value.data[0]
        return first if value.cpu_only else to_device(first, device)
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_device(item, device) for item in value)
    return value
