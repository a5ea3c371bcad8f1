from __future__ import annotations

import torch

from dq.quant.numerics.nested import floating_tensors


def test_floating_tensors_come_in_order_and_nothing_else_does() -> None:
    one, two, three = torch.ones(1), torch.ones(2).half(), torch.ones(3)
    nested = {"a": [one, None, (torch.ones(1).int(), two)], "b": {"c": three}, "d": "text"}
    assert [tensor.numel() for tensor in floating_tensors(nested)] == [1, 2, 3]
    assert floating_tensors(None) == []
