"""Ranges of functions with known bounds follow from the bounds and the integer format."""

from __future__ import annotations

import pytest
import torch

from dq.quant.numerics.affine import scale_and_zero_point
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.fixed import FixedObserver


@pytest.mark.parametrize(
    ("low", "high", "spec", "ends", "step", "zero"),
    [
        (0.0, 1.0, QuantSpec(), (0.0, 255 / 256), 1 / 256, 0),
        (0.0, 1.0, QuantSpec(bits=16), (0.0, 65535 / 65536), 1 / 65536, 0),
        (-1.0, 1.0, QuantSpec(), (-1.0, 127 / 128), 1 / 128, 128),
        (-1.0, 1.0, QuantSpec(signed=True), (-1.0, 127 / 128), 1 / 128, 0),
        (0.0, 1.0, QuantSpec(signed=True, symmetric=True), (0.0, 127 / 128), 1 / 128, 0),
        (-1.0, 1.0, QuantSpec(signed=True, symmetric=True), (-127 / 128, 127 / 128), 1 / 128, 0),
        (-4.0, 1.0, QuantSpec(signed=True, symmetric=True), (-127 / 32, 31 / 32), 1 / 32, 0),
        (0.0, 1.0, QuantSpec(symmetric=True), (0.0, 255 / 256), 1 / 256, 0),
        (0.0, 6.0, QuantSpec(bits=4), (0.0, 5.625), 0.375, 0),
    ],
)
def test_the_step_is_a_share_of_the_bounds(
    low: float, high: float, spec: QuantSpec, ends: tuple[float, float], step: float, zero: int
) -> None:
    observer = FixedObserver(low, high, spec)
    assert (float(observer.range_min), float(observer.range_max)) == pytest.approx(ends)
    scale, zero_point = scale_and_zero_point(observer.range_min, observer.range_max, spec)
    assert float(scale) == pytest.approx(step)
    assert int(zero_point) == zero


def test_it_follows_another_format_and_observes_nothing() -> None:
    observer = FixedObserver(0.0, 1.0, QuantSpec())
    assert not observer.watches
    assert observer.merge == {}
    observer.observe(torch.tensor([-9.0, 9.0]))
    observer.update_()
    assert float(observer.range_max) == 255 / 256
    observer.range_max.requires_grad_()
    observer.follow_(QuantSpec(bits=16))
    assert float(observer.range_max.detach()) == pytest.approx(65535 / 65536)
