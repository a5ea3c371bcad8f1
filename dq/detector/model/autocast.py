"""Mixed precision: the network runs under autocast, losses and box decoding in float32.

mmcv's fp16 decorators support only CUDA's float16 and do not survive tracing. Here the whole graph
runs under torch's autocast and returns float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dq.detector.model.graph import attach


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Return float16 on a GPU, as mmdet's ``fp16`` does, and bfloat16 on a CPU."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def run_under_autocast(detector: nn.Module, graph: Any, device: torch.device) -> None:
    """Make the detector's network run under autocast; its outputs are float32.

    Args:
        detector: As for `dq.detector.model.graph.attach`.
        graph: Its graph, float or quantized.
        device: Where it runs.
    """
    attach(detector, _Autocast(graph, device.type, autocast_dtype(device)))


@dataclass(slots=True)
class _Autocast:
    """Images -> the graph's result, computed under autocast and converted to float32."""

    graph: Any
    device_type: str
    dtype: torch.dtype

    def __call__(self, img: Tensor) -> Any:
        with torch.autocast(self.device_type, dtype=self.dtype):
            outputs = self.graph(img)
        return _to_float32(outputs)


def _to_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(_to_float32(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _to_float32(item) for key, item in value.items()}
    return value
