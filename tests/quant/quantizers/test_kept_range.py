"""A range that calibration searched for stays as it is while training fake-quantizes."""

from __future__ import annotations

import pytest
import torch

from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, update_scales_
from dq.quant.quantizers.phase import Phase
from dq.quant.recipes.recipe import OBSERVERS, Recipe

SPEC = QuantSpec(bits=8)
SEARCHING = [name for name, kind in OBSERVERS.items() if kind.searches]
FOLLOWING = [name for name in OBSERVERS if name not in SEARCHING]


def outliers(number: int) -> torch.Tensor:
    """A batch ``(2, 4, 16, 16)`` with one outlier, the larger the later the batch."""
    torch.manual_seed(number)
    x = torch.randn(2, 4, 16, 16)
    x[0, 0, 0, 0] = 50.0 + number
    return x


def calibrated(observer: str) -> ActivationQuantizer:
    quantizer = Recipe(observer=observer, percentile=99.0).activation_quantizer(SPEC)
    quantizer.train()
    quantizer.phase = Phase.CALIBRATE
    for number in range(4):
        quantizer(outliers(number))
        update_scales_([quantizer])
    return quantizer


def steps(quantizer: ActivationQuantizer, phase: Phase, number: int = 20) -> None:
    quantizer.phase = phase
    for batch in range(number):
        quantizer(outliers(100 + batch))
        update_scales_([quantizer])


def range_of(quantizer: ActivationQuantizer) -> tuple[float, ...]:
    observer = quantizer.observer
    values = (observer.range_min, observer.range_max, quantizer.scale, quantizer.zero_point)
    return tuple(float(value) for value in values)


def test_every_kind_of_observer_is_tested() -> None:
    assert set(SEARCHING) == {"percentile", "mse", "weighted_mse", "entropy"}
    assert set(FOLLOWING) == {"min_max", "moving_average"}


@pytest.mark.parametrize("observer", SEARCHING)
def test_training_keeps_a_searched_range(observer: str) -> None:
    quantizer = calibrated(observer)
    before = range_of(quantizer)
    steps(quantizer, Phase.TRAIN)
    assert range_of(quantizer) == before
    steps(quantizer, Phase.FROZEN, 2)
    assert range_of(quantizer) == before
    # A second training, after a break for an evaluation.
    quantizer.phase = Phase.TRAIN
    quantizer.eval()
    quantizer(outliers(7))
    quantizer.train()
    steps(quantizer, Phase.TRAIN, 2)
    assert range_of(quantizer) == before


@pytest.mark.parametrize("observer", FOLLOWING)
def test_training_goes_on_with_an_observed_range(observer: str) -> None:
    quantizer = calibrated(observer)
    before = range_of(quantizer)
    steps(quantizer, Phase.TRAIN)
    assert range_of(quantizer)[1] > before[1]


@pytest.mark.parametrize("observer", OBSERVERS)
def test_without_a_range_training_observes(observer: str) -> None:
    quantizer = Recipe(observer=observer).activation_quantizer(SPEC)
    quantizer.train()
    steps(quantizer, Phase.TRAIN, 2)
    assert quantizer.has_range


@pytest.mark.parametrize("observer", SEARCHING)
def test_a_range_follows_the_float_model_before_it_is_fake_quantized(observer: str) -> None:
    quantizer = calibrated(observer)
    before = range_of(quantizer)
    steps(quantizer, Phase.OBSERVE)
    assert range_of(quantizer)[1] > before[1]


@pytest.mark.parametrize("observer", SEARCHING)
def test_a_loaded_range_is_kept_too(observer: str) -> None:
    stored = calibrated(observer).state_dict()
    quantizer = Recipe(observer=observer).activation_quantizer(SPEC)
    quantizer.load_state_dict(stored)
    quantizer.train()
    before = range_of(quantizer)
    steps(quantizer, Phase.TRAIN)
    assert range_of(quantizer) == before
