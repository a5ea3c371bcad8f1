from __future__ import annotations

import pytest
import torch

from dq.quant.numerics.affine import fake_quantize, scale_and_zero_point, sum_over
from dq.quant.numerics.shrunk_range import best_shrunk_range
from dq.quant.numerics.spec import QuantSpec

SHARES = (1.0, 0.75, 0.5, 0.25)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_range_is_that_of_the_best_share(axis: int | None, symmetric: bool) -> None:
    spec = QuantSpec(bits=2, signed=True, symmetric=symmetric, channel_axis=axis)
    weight = torch.randn(6, 5, 29, generator=torch.Generator().manual_seed(1)) ** 3
    low, high = best_shrunk_range(weight, spec, SHARES)
    lows, highs = best_shrunk_range(weight, spec, (1.0,))
    errors = torch.stack(
        [
            sum_over(
                (
                    fake_quantize(
                        weight, *scale_and_zero_point(lows * share, highs * share, spec), spec
                    )
                    - weight
                ).square(),
                axis,
            )
            for share in SHARES
        ]
    )
    chosen = torch.tensor(SHARES)[errors.argmin(0)]
    assert torch.equal(low, lows * chosen)
    assert torch.equal(high, highs * chosen)
    assert (chosen < 1).any()


def test_the_first_of_equal_errors_wins_and_a_small_gain_can_be_too_small() -> None:
    spec = QuantSpec(bits=4, signed=True, symmetric=True)
    zeros = torch.zeros(3, 4)
    assert best_shrunk_range(zeros, spec, SHARES) == (0.0, 0.0)
    spec = QuantSpec(bits=2, signed=True, symmetric=True)
    weight = torch.randn(400, generator=torch.Generator().manual_seed(0)) ** 3
    assert best_shrunk_range(weight, spec, SHARES)[1] < weight.max()
    assert best_shrunk_range(weight, spec, SHARES, required_gain=1.0)[1] == weight.max()


def test_a_weight_with_a_nan_keeps_its_whole_range() -> None:
    spec = QuantSpec(bits=4, signed=True, symmetric=True, channel_axis=0)
    weight = torch.tensor([[1.0, torch.nan], [1.0, -2.0]])
    low, high = best_shrunk_range(weight, spec, (1.0,))
    assert low[0].isnan()
    assert high[0].isnan()
    assert (float(low[1]), float(high[1])) == (-2.0, 1.0)


def test_narrow_floats_are_measured_in_float32() -> None:
    spec = QuantSpec(bits=8, signed=True, symmetric=True)
    weight = (torch.randn(300, generator=torch.Generator().manual_seed(0)) ** 3).half()
    narrow, wide = (best_shrunk_range(w, spec, SHARES) for w in (weight, weight.float()))
    assert [float(end) for end in narrow] == pytest.approx([float(end) for end in wide], rel=1e-3)


def test_a_sum_over_the_only_dimension_that_is_kept_is_the_tensor() -> None:
    x = torch.tensor([1.0, 2.0])
    assert torch.equal(sum_over(x, 0), x)
    assert sum_over(x, None) == 3.0


def test_errors_of_float64_are_not_rounded_to_float32() -> None:
    spec = QuantSpec(bits=2, signed=True, symmetric=True)
    # The errors are 0.25 for the first share and 1e-9 less for the second one.
    weight = torch.tensor([1.0, 0.5 + 1e-9], dtype=torch.float64)
    assert best_shrunk_range(weight, spec, (0.5, 1.0))[1] == 1.0
    assert best_shrunk_range(weight.float(), spec, (0.5, 1.0))[1] == 0.5
