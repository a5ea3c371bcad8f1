"""Sums of differences over batches, some of which have no values at all."""

from __future__ import annotations

import pytest
import torch

from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MinMaxObserver
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.verify.layer_differences import _Total


@pytest.mark.parametrize("rounded", [False, True])
def test_a_tensor_without_values_changes_nothing(rounded: bool) -> None:
    quantizer = ActivationQuantizer(QuantSpec(), MinMaxObserver())

    def add(total: _Total, x: torch.Tensor, other: torch.Tensor) -> None:
        if rounded:
            total.add_rounded(quantizer, x, x, other.numpy())
        else:
            total.add_output(x, other.numpy())

    some, none = torch.tensor([[0.0, 255.0]]), torch.zeros(0, 2)
    alone, mixed, empty = (_Total(("layer",)) for _ in range(3))
    add(alone, some, some + 1)
    for x in (none, some, none):
        add(mixed, x, x + 1)
    add(empty, none, none)
    assert mixed.difference("site") == alone.difference("site")
    found = empty.difference("site")
    assert (found.num, found.share, found.largest, found.excess) == (0, 0.0, 0.0, 0.0)
