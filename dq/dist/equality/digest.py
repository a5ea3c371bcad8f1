"""A digest of the bytes of all tensors, to check that ranks hold the same ones."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from dq.dist.exchange import collectives


def digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Digest names, dtypes, shapes and bytes of tensors; the order does not matter.

    Args:
        named: For example `module.state_dict().items()`. Strides and devices do not matter.

    Returns:
        64 hexadecimal digits of SHA-256. Floats that compare equal but have different bits (0.0
        and -0.0) give different digests.

    Raises:
        ValueError: A name occurs twice.
    """
    return _total(digests(named)).hex()


def differing_names(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Name the tensors that differ between ranks or are missing on some of them.

    Every rank must call it, at the same step. One collective of 32 bytes per rank when all agree.
    Otherwise a second collective sends the digest of each tensor.

    Returns:
        The sorted names, the same list on every rank; empty when all ranks agree.

    Raises:
        ValueError: A name occurs twice.
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
        ValueError: A name occurs twice.
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
