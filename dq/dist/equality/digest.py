"""The proof that ranks hold the same tensors: a digest of all their bytes."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from dq.dist.exchange import collectives


def digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Digest names, dtypes, shapes and bytes of tensors; their order does not matter.

    Args:
        named: such as `module.state_dict().items()`; strides and devices do not matter either.

    Returns:
        64 hexadecimal digits of SHA-256. Floats that compare equal but have other bits (0.0 and
        -0.0) give another digest.

    Raises:
        ValueError: a name comes twice.
    """
    return _total(digests(named)).hex()


def differing_names(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Name the tensors that are not the same on all ranks, or are not on all of them.

    Every rank must call it, at the same step. One collective of 32 bytes a rank when all agree;
    only then else the digests of the single tensors travel too.

    Returns:
        The names, sorted, the same list on every rank; empty when all ranks agree.

    Raises:
        ValueError: a name comes twice.
    """
    own = digests(named)
    total = torch.frombuffer(bytearray(_total(own)), dtype=torch.uint8)
    totals = collectives.all_gather(total.to(collectives.host_device()))
    if bool((totals == totals[0]).all()):
        return []
    everywhere = collectives.all_gather_objects(own)
    names = {name for found in everywhere for name in found}
    return sorted(n for n in names if len({found.get(n) for found in everywhere}) > 1)


def digests(named: Iterable[tuple[str, Tensor]]) -> dict[str, bytes]:
    """Digest each tensor with its name, dtype and shape: 32 bytes of SHA-256 by name.

    Raises:
        ValueError: a name comes twice.
    """
    found: dict[str, bytes] = {}
    for name, tensor in named:
        if name in found:
            raise ValueError(f"the name {name!r} comes twice among the tensors to digest")
        hashed = hashlib.sha256(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        found[name] = hashed.digest()
    return found


def _total(found: dict[str, bytes]) -> bytes:
    return hashlib.sha256(b"".join(found[name] for name in sorted(found))).digest()
