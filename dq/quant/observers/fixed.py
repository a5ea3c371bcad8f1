"""An observer for values whose bounds are known, such as those of a sigmoid."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MinMaxObserver


class FixedObserver(MinMaxObserver):
    """A range that follows from the bounds and the integer format and never changes.

    The scale is the width between the bounds divided by ``2**bits``. In a signed symmetric format
    it is the larger bound divided by ``2**(bits - 1)``. For a sigmoid it is ``1 / 256`` at 8 bits
    with zero point 0, as engines fix it for their own kernels. So the upper bound itself is not
    representable: it would be the integer after the largest one.

    Args:
        low: The lower bound, at most 0.
        high: The upper bound, more than 0.
        spec: The integer format; per tensor.
    """

    merge: ClassVar[dict[str, str]] = {}
    watches: ClassVar[bool] = False

    def __init__(self, low: float, high: float, spec: QuantSpec) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.follow_(spec)

    @torch.no_grad()
    def follow_(self, spec: QuantSpec) -> None:
        """Set the range for this integer format."""
        reach = max(-self.low, self.high)
        mirrored = spec.symmetric and spec.signed
        step = reach / 2 ** (spec.bits - 1) if mirrored else (self.high - self.low) / 2**spec.bits
        self.range_min.fill_(self.low)
        self.range_max.fill_(self.high - step)
        if mirrored:
            self.range_min.clamp_(min=step - reach)

    def observe(self, x: Tensor) -> None:
        """Do nothing: the bounds are known."""
