"""Collectives over all ranks; in a single process each of them is the identity.

Every rank must call them in the same order. They should be few and large, so this module counts
them: a test asserts the number of collectives per step.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from dq.dist.errors.lost import LostRankError
from dq.dist.rendezvous.sequence import open_meeting
from dq.dist.rendezvous.store import meet

Reduction = Literal["sum", "mean", "min", "max"]

_OPERATIONS = {
    "sum": dist.ReduceOp.SUM,
    "mean": dist.ReduceOp.SUM,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
}
_issued = 0


def rank(group: dist.ProcessGroup | None = None) -> int:
    """Return the rank of this process; 0 without a process group."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def is_main_rank() -> bool:
    """Return whether this process is rank 0 or the only process."""
    return rank() == 0


def collective_count() -> int:
    """Return how many collectives this process has issued through this module."""
    return _issued


def host_device() -> torch.device:
    """Return the device for small host data in collectives: the CPU if gloo is available."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def all_reduce_(
    tensor: Tensor, op: Reduction = "sum", group: dist.ProcessGroup | None = None
) -> Tensor:
    """Replace the tensor on every rank by its reduction over all ranks.

    Every rank must call it, at the same step, with the same shape and dtype.

    Args:
        tensor: Any shape and strides; changed in place, outside autograd.
        op: How ranks are combined; "mean" needs a floating or complex dtype.
        group: The ranks to combine; all by default.

    Returns:
        The argument itself.

    Raises:
        ValueError: The reduction does not exist, or is a mean of integers.
    """
    if op not in _OPERATIONS:
        raise ValueError(f"a reduction is one of {', '.join(_OPERATIONS)}, but op is {op!r}")
    if op == "mean" and not (tensor.is_floating_point() or tensor.is_complex()):
        raise ValueError(f"the mean over ranks needs a floating dtype, but got {tensor.dtype}")
    if world_size(group) == 1:
        return tensor
    _count()
    with torch.no_grad():
        dense = tensor.detach().contiguous()
        dist.all_reduce(dense, _OPERATIONS[op], group)
        if op == "mean":
            dense.div_(world_size(group))
        if not tensor.is_contiguous():
            tensor.copy_(dense)
    return tensor


def broadcast_(tensor: Tensor, source: int = 0) -> Tensor:
    """Replace the tensor on every rank by that of rank `source`.

    Every rank must call it, at the same step, with the same shape and dtype.

    Returns:
        The argument itself.
    """
    broadcast_coalesced_([tensor], source)
    return tensor


def broadcast_coalesced_(tensors: Sequence[Tensor], source: int = 0) -> None:
    """Replace all tensors on every rank by those of rank `source`: one collective per device.

    The tensors are sent as bytes, so one collective carries every dtype. Tensors with the largest
    elements come first, so each piece starts at a multiple of its element size, as views require.
    Every rank must call it, at the same step, with the same shapes and dtypes.

    Args:
        tensors: Any shapes, strides and dtypes; changed in place, outside autograd.
        source: The rank that sends its values.
    """
    if world_size() == 1:
        return
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        here = sorted(
            (tensor.detach() for tensor in tensors if tensor.device == device),
            key=lambda tensor: -tensor.element_size(),
        )
        parcel = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in here])
        _count()
        dist.broadcast(parcel, source)
        if rank() == source:
            continue
        pieces = torch.split(parcel, [tensor.numel() * tensor.element_size() for tensor in here])
        for tensor, piece in zip(here, pieces, strict=True):
            tensor.copy_(piece.view(tensor.dtype).view(tensor.shape))


def all_gather(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Gather the tensors of all ranks on every rank, in rank order.

    Every rank must call it, at the same step, with the same shape and dtype.

    Returns:
        (world_size, *tensor.shape), a new tensor outside autograd; (1, *tensor.shape) in a single
        process.
    """
    own = tensor.detach().contiguous()
    gathered = own.new_empty((world_size(group), *own.shape))
    if world_size(group) == 1:
        gathered[0] = own
        return gathered
    _count()
    dist.all_gather(list(gathered.unbind(0)), own, group)
    return gathered


def gather_objects(obj: object, destination: int = 0) -> list[Any] | None:
    """Gather the picklable objects of all ranks on rank `destination`, in rank order.

    Every rank must call it, at the same step. The objects are sent through the CPU if the group
    has a CPU backend.

    Returns:
        The objects on rank `destination`, None elsewhere.
    """
    if world_size() == 1:
        return [obj]
    gathered: list[Any] | None = [None] * world_size() if rank() == destination else None
    _count()
    dist.gather_object(obj, gathered, dst=destination)
    return gathered


def all_gather_objects(obj: object) -> list[Any]:
    """Gather the picklable objects of all ranks on every rank, in rank order.

    Every rank must call it, at the same step.
    """
    gathered: list[Any] = [obj] * world_size()
    if world_size() > 1:
        _count()
        dist.all_gather_object(gathered, obj)
    return gathered


def broadcast_object(obj: Any, source: int = 0) -> Any:
    """Return the picklable object of rank `source` on every rank.

    Every rank must call it, at the same step; the argument is used only on `source`.
    """
    if world_size() == 1:
        return obj
    carrier = [obj if rank() == source else None]
    _count()
    dist.broadcast_object_list(carrier, src=source)
    return carrier[0]


def barrier(limit_s: float | None = None) -> None:
    """Wait until every rank has called this.

    Every rank must call it, at the same step. With a limit the ranks wait on the store instead of
    in a collective, so the error can name the ranks that are missing.

    Args:
        limit_s: Seconds to wait; the time-out of the group by default.

    Raises:
        RuntimeError: Some ranks did not arrive in time; their logs say what they were doing.
    """
    if world_size() == 1:
        return
    _count()
    if limit_s is None:
        dist.barrier()
        return
    late = meet(open_meeting("barrier"), limit_s=limit_s)
    if late:
        raise LostRankError(
            f"rank {', '.join(map(str, late))} did not reach the barrier within {limit_s:g} s of "
            f"rank {rank()}; look at the logs of those ranks"
        )


def _count() -> None:
    global _issued
    _issued += 1
