"""Mixed precision: the network under autocast, losses and decoding in float32.

mmcv's own fp16 decorators know CUDA's float16 alone and are gone in a traced graph. Here the graph
as a whole runs under torch's autocast and hands float32 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmcv.runner import OptimizerHook
from torch import Tensor, nn

from dq.detector.graph import attach


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Return float16 on a GPU, as mmdet's ``fp16`` means, and bfloat16 on a CPU."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def run_under_autocast(detector: nn.Module, graph: Any, device: torch.device) -> None:
    """Let the detector's network run under autocast; its outputs are float32.

    Args:
        detector: As `dq.detector.graph.attach` takes it.
        graph: Its graph, float or quantized.
        device: Where it runs.
    """
    dtype = autocast_dtype(device)

    def network(img: Tensor) -> Any:
        with torch.autocast(device.type, dtype=dtype):
            outputs = graph(img)
        return _to_float32(outputs)

    attach(detector, network)


def _to_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(_to_float32(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _to_float32(item) for key, item in value.items()}
    return value


class ScaledOptimizerHook(OptimizerHook):  # type: ignore[misc]
    """mmcv's optimizer hook with torch's gradient scaler, for float16.

    Args:
        loss_scale: ``'dynamic'``, a number to begin with, or a dict of GradScaler's arguments, as
            in mmdet's ``fp16`` section.
        device: Where the model is; on a CPU nothing is scaled, bfloat16 has float32's range.
        grad_clip: As for mmcv's hook.
    """

    def __init__(
        self,
        *,
        loss_scale: float | str | Mapping[str, Any],
        device: torch.device,
        grad_clip: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(grad_clip=grad_clip)
        arguments: dict[str, Any] = {}
        if isinstance(loss_scale, Mapping):
            arguments = dict(loss_scale)
        elif not isinstance(loss_scale, str):
            arguments = {"init_scale": float(loss_scale)}
        scaling = device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaling, **arguments)

    def after_train_iter(self, runner: Any) -> None:
        """Scale, go backward, clip the true gradients, step unless they overflowed."""
        runner.optimizer.zero_grad()
        self.scaler.scale(runner.outputs["loss"]).backward()
        self.scaler.unscale_(runner.optimizer)
        if self.grad_clip is not None:
            norm = self.clip_grads(runner.model.parameters())
            if norm is not None:
                runner.log_buffer.update({"grad_norm": float(norm)}, runner.outputs["num_samples"])
        self.scaler.step(runner.optimizer)
        self.scaler.update()
