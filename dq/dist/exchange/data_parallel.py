"""Wrap a module in DistributedDataParallel, unwrap it, and average the buffers DDP leaves alone."""

import contextlib
import inspect
import re
from collections.abc import Collection, Iterator, Sequence
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
    """Wrap a module in DDP, so that gradients are averaged over all ranks.

    Parameters and buffers are copied from rank 0 now. Later forward passes do not broadcast
    buffers, which would overwrite what the other ranks observed (see `sync_buffers_`).
    Every rank must call it, at the same step.

    Gradients are assigned to buckets in the reverse order of the module's parameters from the first
    step on. By default torch reorders the buckets after the first step of every start. With three
    or more ranks the order of a sum depends on a gradient's place in its bucket, so a resumed
    training would not be bit-identical.

    Args:
        module: Already on its device; it is not copied.
        device: The device of the module; a CUDA device needs its index.
        find_unused_parameters: Look for parameters without a gradient in each step.
        static_graph: Promise that every step uses the same parameters.
        gradient_as_bucket_view: Let gradients share the memory of the communication buckets.
        cls: A subclass with the same arguments.
        late: Parameters whose gradients are complete only at the end of the backward pass, wherever
            they are in the module; they are put into the last buckets.

    Returns:
        The wrapped module; the argument itself in a single process or without parameters that need
        a gradient.
    """
    needs_gradient = any(parameter.requires_grad for parameter in module.parameters())
    if collectives.world_size() == 1 or not needs_gradient:
        return module
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
        sync: dict[str, Any] = {"forward_sync_buffers": False}
    else:  # Before torch 2.12, broadcast_buffers=False also skips the copy while wrapping.
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
    """Return a zero that depends on all parameters; the first one comes last in backward.

    Args:
        parameters: Not registered, because they belong to another module.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        super().__init__()
        self.ordered = tuple(parameters)

    def forward(self) -> Tensor:
        return torch.stack([parameter.sum().float() * 0 for parameter in self.ordered]).sum()


def _settle_buckets(wrapped: DistributedDataParallel, late: Collection[Parameter]) -> None:
    """Make torch fix its bucket order now, with a backward pass in a fixed order."""
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


@contextlib.contextmanager
def unused_parameters_named(module: Module) -> Iterator[None]:
    """Name the parameters that the previous step did not use, if DDP raises an error about them.

    DDP waits for the gradient of every parameter. It notices at the next forward pass that some are
    missing, and its message has neither their names nor the config's key.

    Args:
        module: Wrapped by `wrap`; the body runs it forward.

    Raises:
        ValueError: On the ranks whose losses did not use all parameters.
    """
    try:
        yield
    except RuntimeError as error:
        if "finished reduction in the prior iteration" not in str(error):
            raise
        # DDP counts the parameters in this order.
        named = [name for name, p in unwrap(module).named_parameters() if p.requires_grad]
        said = re.search(r"did not receive grad for rank \d+:((?: \d+)+)", str(error))
        names = [named[int(number)] for number in said[1].split()] if said else []
        shown = ", ".join(names[:3]) or "some weights"
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"the losses of the last step do not use {shown}{more}; let"
            " the model return the same losses in every step on every rank, or set"
            " find_unused_parameters=True in the config"
        ) from error


def unwrap(module: Module) -> Module:
    """Return the module inside DDP, DataParallel and torch.compile, in any order of wrapping.

    A module without a wrapper is returned itself.
    """
    while True:
        inside = getattr(module, "_orig_mod", None)
        if isinstance(module, DistributedDataParallel | DataParallel):
            inside = module.module
        if not isinstance(inside, Module):
            return module
        module = inside


def no_sync(module: Module) -> AbstractContextManager[None]:
    """Do not synchronize gradients in the body if the module is DDP; else change nothing."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


def sync_buffers_(module: Module, group: dist.ProcessGroup | None = None) -> None:
    """Replace the running statistics of normalization layers by their mean over ranks.

    One collective for all of them, as float64. Counters such as num_batches_tracked do not change.
    Every rank must call it, at the same step.

    Args:
        module: With the same normalization layers on every rank; changed in place.
        group: The ranks to average over; all by default.
    """
    if collectives.world_size(group) == 1:
        return  # Writing the same values would still invalidate a backward pass in progress.
    means = mean_buffers(module, group)
    for name, buffer in _running_statistics(module).items():
        buffer.copy_(means[name])


def mean_buffers(module: Module, group: dist.ProcessGroup | None = None) -> dict[str, Tensor]:
    """Return the mean over ranks of each running statistic; the module does not change.

    Every rank must call it, at the same step; see `sync_buffers_`.

    Returns:
        Keyed by the names of the module's state dict, on the same device. A layer with several
        names has its statistics under each of them.
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
