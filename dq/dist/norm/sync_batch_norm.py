"""Batch normalization over all ranks on gloo and NCCL, and conversion to it and back."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import BatchNorm2d, Module
from torch.nn.modules._functions import SyncBatchNorm as NativeFunction
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from dq.dist.exchange import collectives
from dq.dist.norm.operator import normalize_over_ranks


class SyncBatchNorm(_BatchNorm):
    """Normalize by the batch of all ranks in training; else like an ordinary batch normalization.

    torch.nn.SyncBatchNorm refuses CPU tensors as soon as there is a process group. This class uses
    torch's kernels on CUDA and its own on a CPU: one collective in forward, one in backward.
    Batches may differ in size and be empty. In training every rank must call it, at the same step.

    Args:
        num_features: Channels C of an input (N, C, *).
        eps: Added to the variance.
        momentum: Weight of the newest batch in the running statistics; None for a plain mean.
        affine: Learn a weight and a bias for each channel.
        track_running_stats: Keep running statistics for evaluation.
        process_group: The ranks whose samples count; all by default.
        device: Device of parameters and buffers.
        dtype: Dtype of parameters and buffers.
    """

    process_group: dist.ProcessGroup | None
    original_class: type[_BatchNorm] = BatchNorm2d

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch normalization needs (N, C, *), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, *); in training by the samples of all ranks, one collective.

        Raises:
            ValueError: All ranks together have only one sample per channel.
        """
        if not self.training or collectives.world_size(self.process_group) == 1:
            return super().forward(input)
        self._check_input_dim(input)
        # torch's kernels are faster than ours, but they would break the graph of torch.compile.
        if input.device.type == "cuda" and not torch.compiler.is_compiling():
            return self._forward_native(input)
        return self._over_ranks(input)

    def _over_ranks(self, input: Tensor) -> Tensor:
        group = "" if self.process_group is None else self.process_group.group_name
        output, mean, variance, count = normalize_over_ranks(
            input, self.weight, self.bias, self.eps, group
        )
        self._track(mean.detach(), variance.detach(), count.detach())
        normalized: Tensor = output
        return normalized

    def _forward_native(self, input: Tensor) -> Tensor:
        # A rank with an empty half-precision batch must send float32 like the others, which torch's
        # function does not do.
        sent = input.float() if input.numel() == 0 else input
        tracks = self.track_running_stats
        output: Tensor = NativeFunction.apply(
            sent,
            self.weight,
            self.bias,
            self.running_mean if tracks else None,
            self.running_var if tracks else None,
            self.eps,
            self._count_batch(),
            self.process_group or dist.group.WORLD,
            collectives.world_size(self.process_group),
        )
        return output.to(input.dtype)

    def _count_batch(self) -> float:
        """Count one more batch and return its weight in the running statistics."""
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return self.momentum or 0.0

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Add the batch to the running statistics, unless the batches of all ranks are empty."""
        if not self.track_running_stats:
            return
        here = count.clamp(max=1)
        weight = here * (self.momentum or 0.0)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(here.squeeze().to(self.num_batches_tracked.dtype))
            if self.momentum is None:
                weight = here / self.num_batches_tracked.clamp(min=1)
        if self.running_mean is None or self.running_var is None:
            return
        unbiased = variance * (count / (count - 1).clamp(min=1))
        for running, latest in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(latest.to(running.dtype), weight.to(running.dtype))


def convert_sync_batch_norm(
    module: Module, process_group: dist.ProcessGroup | None = None
) -> Module:
    """Make every batch normalization in the module, itself included, synchronize over ranks.

    The layers stay the same objects and change only their class. So parameters, buffers, hooks,
    sharing and references to them (of optimizers, of traced graphs) stay valid. torch's
    SyncBatchNorm is converted too and keeps its own group unless one is given. Layers whose class
    overrides forward, and layers that are already converted, are not changed.

    Args:
        module: Changed in place.
        process_group: The ranks whose samples count; all by default.

    Returns:
        The argument itself.

    Raises:
        ValueError: A lazy layer has no shape yet.
    """
    known = (_BatchNorm.forward, torch.nn.SyncBatchNorm.forward)
    for layer in module.modules():
        if not isinstance(layer, _BatchNorm) or type(layer).forward not in known:
            continue
        if any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
            raise ValueError("a lazy batch normalization has no shape; run one batch, then convert")
        converted = cast(SyncBatchNorm, layer)
        converted.original_class = type(layer)
        converted.process_group = process_group or getattr(layer, "process_group", None)
        converted.__class__ = SyncBatchNorm
    return module


def revert_sync_batch_norm(module: Module) -> Module:
    """Give every synchronized layer its original class back; BatchNorm2d if it had none.

    The layers stay the same objects, as in `convert_sync_batch_norm`.

    Args:
        module: Changed in place.

    Returns:
        The argument itself.
    """
    for layer in module.modules():
        if isinstance(layer, SyncBatchNorm):
            original_class = layer.original_class
            layer.__dict__.pop("original_class", None)
            if original_class is not torch.nn.SyncBatchNorm:
                layer.__dict__.pop("process_group", None)
            cast(Module, layer).__class__ = original_class
    return module
