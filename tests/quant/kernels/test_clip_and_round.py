"""Clip and fake quantization in one function give the results of two separate ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dq.quant.kernels.clip_and_round import fake_quantize_clipped
from dq.quant.kernels.rounding import clipped
from dq.quant.numerics.affine import fake_quantize
from dq.quant.numerics.spec import QuantSpec

ODD = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 6.0, 1e30, -1e-42, 5.99])
CLIPS = {
    (0.0, torch.inf): F.relu,
    (0.0, 6.0): F.relu6,
    (-1.0, 1.0): F.hardtanh,
}


@pytest.mark.parametrize("clip", list(CLIPS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.02, 0.5])
def test_results_and_gradients_are_torchs(
    clip: tuple[float, float], dtype: torch.dtype, scale: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 4 * torch.randn(5000, generator=generator)
    x = torch.cat([ODD.to(x.device), x]).to(dtype)
    upstream = torch.randn(len(x), generator=generator).to(dtype)
    spec = QuantSpec()
    step, zero_point = torch.tensor(scale), torch.tensor(3, dtype=torch.int32)

    def separate(values: Tensor) -> Tensor:
        return fake_quantize(CLIPS[clip](values), step, zero_point, spec)

    def fused(values: Tensor) -> Tensor:
        with torch.no_grad():
            cut = clipped(values, clip)
        return fake_quantize_clipped(values, cut, step, zero_point, spec, clip)

    results = []
    for run in (separate, fused):
        values = x.clone().requires_grad_()
        y = run(values)
        y.backward(upstream)
        results.append((y.detach(), values.grad))
    (y, gradient), (other_y, other_gradient) = results
    assert y.dtype == other_y.dtype == dtype
    assert torch.equal(y, other_y)
    assert gradient is not None
    assert other_gradient is not None
    torch.testing.assert_close(gradient, other_gradient, rtol=0, atol=0)
