"""mmcv's containers with tensors that torch's loader pins."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmcv.parallel import DataContainer
from torch.utils.data._utils.pin_memory import pin_memory


class PinnableContainer(DataContainer):  # type: ignore[misc]
    """A container whose tensors torch's loader can pin; it ignores mmcv's own containers."""

    def pin_memory(self) -> PinnableContainer:
        """Return it with its tensors in pinned memory, from which copies to a GPU can overlap."""
        again = copy.copy(self)
        again._data = pin_memory(self.data)  # type: ignore[no-untyped-call]  # Not typed in torch.
        return again


def pinnable(value: Any) -> Any:
    """Return a collated batch with containers that can be pinned; metadata stays in mmcv's.

    Args:
        value: A batch of the data loader: containers, tensors, mappings and lists of them.
    """
    if isinstance(value, DataContainer):
        if value.cpu_only:
            return value
        return PinnableContainer(
            value.data, value.stack, value.padding_value, value.cpu_only, value.pad_dims
        )
    if isinstance(value, Mapping):
        return {key: pinnable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(pinnable(item) for item in value)
    return value
