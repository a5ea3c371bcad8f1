"""The operator's description for torch.compile is that of what it computes."""

from __future__ import annotations

import pytest
import torch

from dq.dist.norm import operator

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 5, 7), (6, 5), (2, 5, 3, 4, 2)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shapes_and_dtypes_are_those_of_the_results(
    shape: tuple[int, ...], affine: bool, dtype: torch.dtype
) -> None:
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    weight, bias = (torch.randn(5, dtype=wide) if affine else None for _ in range(2))
    given = (x, weight, bias, 1e-5, "")
    torch.library.opcheck(operator.normalize_over_ranks, given, test_utils=CHECKS)
    _, mean, variance, count = operator.normalize_over_ranks(*given)
    assert mean.shape == variance.shape == (5,)
    assert count.shape == (1,)
    assert float(count) == x.numel() / 5
    back = (torch.randn(shape).to(dtype), x, weight, mean, (variance + 1e-5).rsqrt(), count, "")
    for wants_input in (True, False):
        torch.library.opcheck(operator._backward, (*back, wants_input), test_utils=CHECKS)
        grad_input, sums = operator._backward(*back, wants_input)
        assert grad_input.shape == (x.shape if wants_input else (0,))
        assert sums.shape == (2, 5)
