"""Create the tensors of a test on another device, with the same values as on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors


class OnDevice(TorchFunctionMode):
    """Create tensors on a device, unless a function is given another one.

    Like the context of `torch.device`, but random numbers come from the CPU's generators, so that
    a test has the same values on every device and may use its own generator.

    Args:
        device: Device of the tensors.
    """

    _in_place = (torch.Tensor.uniform_, torch.Tensor.normal_)
    _random = (torch.rand, torch.randn, torch.randint, torch.randperm)

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in self._in_place and args[0].device.type == self.device.type:
            with torch.no_grad():
                drawn = func(torch.empty_like(args[0], device="cpu"), *args[1:], **given)
                return args[0].copy_(drawn)
        if func not in _device_constructors() or given.get("device") is not None:
            return func(*args, **given)
        if func not in self._random:
            return func(*args, **{**given, "device": self.device})
        needs_gradient = given.pop("requires_grad", False)
        drawn = func(*args, **{**given, "device": "cpu"}).to(self.device)
        return drawn.requires_grad_(needs_gradient)
