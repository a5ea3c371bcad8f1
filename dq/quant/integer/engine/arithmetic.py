"""float32 arithmetic of a CPU's vector instructions: fused multiply-add, polynomials."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fused(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """Return ``x * factor + addend`` in float32, rounded once; each may be broadcast.

    The product of two float32 numbers is exact in float64. The sum is rounded to odd there (Boldo
    and Melquiond 2008, "Emulation of FMA and correctly rounded sums"), so that rounding it again
    to float32 gives the nearest number.
    """
    product, other = x.double() * factor.double(), addend.double()
    total = product + other
    # The rounding error of the sum (Knuth's TwoSum).
    part = total - product
    error = (product - (total - part)) + (other - part)
    bits = total.view(torch.int64)
    odd = torch.where((error > 0) == (total > 0), bits + 1, bits - 1)
    return torch.where((error != 0) & (bits & 1 == 0), odd, bits).view(torch.float64).float()


def fused_once(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """Return `fused` for an ``x`` of few bits, where the sum in float64 has no rounding error."""
    return (x.double().mul_(factor.double()) + addend.double()).float()


def polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Return a polynomial of ``x`` by Horner's rule with `fused`, the highest power first."""
    result = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = fused(result, x, torch.full_like(x, coefficient))
    return result
