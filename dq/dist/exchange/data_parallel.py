"""A module as DistributedDataParallel and back, and the buffers that DDP is told to leave alone."""

import contextlib
import inspect
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel

from dq.dist.exchange import collectives


def wrap(
    module: Module,
    *,
    device: torch.device,
    find_unused_parameters: bool = False,
    static_graph: bool = False,
    gradient_as_bucket_view: bool = True,
    cls: type[DistributedDataParallel] = DistributedDataParallel,
    late: Collection[Parameter] = (),
) -> Module:
    """Wrap a module in DDP, so that its gradients become their mean over all ranks.

    Parameters and buffers become those of rank 0 now; later forwards leave the buffers alone, for
    a broadcast of rank 0's would overwrite what the other ranks observed (see `sync_buffers_`).
    Every rank must call it, at the same step.

    Gradients share buckets in the order of the module's parameters, the last first, from the first
    step on: torch would order them anew after one step of each start. Three ranks and more add
    up in an order that depends on a gradient's place, so a training that goes on would go on with
    other bits.

    Args:
        module: on its device already; it is not copied.
        device: the device of the module; a CUDA device needs its number.
        find_unused_parameters: look in each step for parameters without a gradient.
        static_graph: promise that every step uses the same parameters.
        gradient_as_bucket_view: let gradients share the memory of the communication buckets.
        cls: a subclass with the same arguments.
        late: parameters whose gradients are complete at the end of the backward pass only, wherever
            they stand in the module; they share the last buckets.

    Returns:
        The wrapped module; alone, or when no parameter needs a gradient, the module itself.
    """
    needs_gradient = any(parameter.requires_grad for parameter in module.parameters())
    if collectives.world_size() == 1 or not needs_gradient:
        return module
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
        sync: dict[str, Any] = {"forward_sync_buffers": False}
    else:  # Before torch 2.12 this argument also left the buffers alone while wrapping.
        sync = {"broadcast_buffers": False}
        collectives.broadcast_coalesced_(list(module.buffers()))
    wrapped = cls(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=find_unused_parameters,
        static_graph=static_graph,
        gradient_as_bucket_view=gradient_as_bucket_view,
        **sync,
    )
    orders_anew = hasattr(wrapped, "reducer") and not (find_unused_parameters or static_graph)
    if orders_anew:
        _settle_buckets(wrapped, late)
    return wrapped


class _Zero(Module):
    """Returns a zero that all parameters have a part in, the first of them last in backward.

    Args:
        parameters: Not registered, for they are another module's.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        super().__init__()
        self.ordered = tuple(parameters)

    def forward(self) -> Tensor:
        return torch.stack([parameter.sum().float() * 0 for parameter in self.ordered]).sum()


def _settle_buckets(wrapped: DistributedDataParallel, late: Collection[Parameter]) -> None:
    """Let torch order its buckets now, by a backward pass whose order is always the same."""
    module, ends = wrapped.module, {id(parameter) for parameter in late}
    parameters = [p for p in module.parameters() if p.requires_grad]
    former = [parameter.grad for parameter in parameters]
    try:
        wrapped.module = _Zero(sorted(parameters, key=lambda p: id(p) not in ends))
        with torch.enable_grad():
            wrapped().backward()
    finally:
        wrapped.module = module
        for parameter, gradient in zip(parameters, former, strict=True):
            parameter.grad = gradient


def unwrap(module: Module) -> Module:
    """Return the module inside what wraps it, in any order; else the module itself.

    Wrappers are DDP, DataParallel and torch.compile's.
    """
    while True:
        inside = getattr(module, "_orig_mod", None)
        if isinstance(module, DistributedDataParallel | DataParallel):
            inside = module.module
        if not isinstance(inside, Module):
            return module
        module = inside


def no_sync(module: Module) -> AbstractContextManager[None]:
    """Keep gradients of the body on their rank when the module is DDP; else change nothing."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


def sync_buffers_(module: Module, group: dist.ProcessGroup | None = None) -> None:
    """Replace the running statistics of normalization layers by their mean over ranks.

    One collective carries them all, as float64. Counters such as num_batches_tracked stay. Every
    rank must call it, at the same step.

    Args:
        module: with the same normalization layers on every rank; changed in place.
        group: the ranks to average over; all by default.
    """
    if collectives.world_size(group) == 1:
        return  # A write of the same values would still invalidate a backward pass under way.
    means = mean_buffers(module, group)
    for name, buffer in _running_statistics(module).items():
        buffer.copy_(means[name])


def mean_buffers(module: Module, group: dist.ProcessGroup | None = None) -> dict[str, Tensor]:
    """Return the mean over ranks of each running statistic, which stays as it is; see above.

    Returns:
        By the names of the module's state dict, on the same device; those of a layer that has
        several names under each of them.
    """
    own = _running_statistics(module)
    if collectives.world_size(group) == 1 or not own:
        return {name: buffer.clone() for name, buffer in own.items()}
    parcel = torch.cat([buffer.reshape(-1).double() for buffer in own.values()])
    collectives.all_reduce_(parcel, "mean", group)
    pieces = torch.split(parcel, [buffer.numel() for buffer in own.values()])
    return {
        name: piece.view_as(buffer).to(buffer.dtype)
        for (name, buffer), piece in zip(own.items(), pieces, strict=True)
    }


def _running_statistics(module: Module) -> dict[str, Tensor]:
    return {
        f"{name}.{kind}" if name else kind: buffer.detach()
        for name, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, _NormBase)
        for kind, buffer in (
            ("running_mean", layer.running_mean),
            ("running_var", layer.running_var),
        )
        if buffer is not None
    }
