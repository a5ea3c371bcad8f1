"""Presets: every one has the bits, symmetry and scales of its name."""

import pytest
import torch
from torch import nn

from dq.quant.graph.prepare import prepare
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import PRESETS, preset


@pytest.mark.parametrize(
    ("name", "weight", "activation"),
    [("int8", 8, 8), ("int16", 16, 16), ("w8a16", 8, 16), ("w4a8", 4, 8), ("w4a4", 4, 4)],
)
def test_bits_are_those_of_the_name(name: str, weight: int, activation: int) -> None:
    recipe = preset(name)
    assert (recipe.weight.bits, recipe.activation.bits) == (weight, activation)


def test_engines_get_the_formats_they_support() -> None:
    assert preset("tensorrt").activation.symmetric
    assert preset("tensorrt").activation.signed
    assert preset("onnxruntime").activation.quant_max == 255
    tidl = preset("tidl")
    assert tidl.weight.power_of_two
    assert tidl.activation.power_of_two
    assert tidl.weight.channel_axis is None
    assert all(recipe.weight.symmetric for recipe in PRESETS.values())


@pytest.mark.parametrize("name", PRESETS)
def test_more_bits_give_less_error_and_scales_are_as_promised(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(8, 3, 12, 12)
    want = net(x).detach()
    graph = prepare(net, preset(name))
    set_phase(graph.quantizers, Phase.CALIBRATE)
    graph(x)
    update_scales_(list(graph.activations().values()))
    set_phase(graph.quantizers, Phase.FROZEN)
    noise = float(((graph(x).detach() - want).square().mean() / want.square().mean()).sqrt())
    recipe = preset(name)
    fewest = min(recipe.weight.bits, recipe.activation.bits)
    bound = {4: 0.4, 8: 0.03, 16: 2e-4}[fewest] * (2 if recipe.weight.power_of_two else 1)
    assert bound / 100 < noise < bound
    if recipe.activation.power_of_two:
        for quantizer in graph.activations().values():
            assert float(torch.log2(quantizer.scale)).is_integer()


def test_an_unknown_preset_is_refused_with_the_closest_name() -> None:
    with pytest.raises(ValueError, match="did you mean w4a8"):
        preset("w4a9")
