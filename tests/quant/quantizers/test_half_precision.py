"""In half precision and under autocast every quantized value stays on its grid."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.factory import LEARNED, initialise_weights_
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.half_precision import (
    SIGNIFICANDS,
    nearly_represents,
    on_the_grid,
    represents,
)
from dq.quant.quantizers.layers import QuantizedLayer
from dq.quant.quantizers.learned_step import LsqWeightQuantizer
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import INT8_ACTIVATION, INT8_WEIGHT, Recipe

KINDS = (None, *LEARNED)
NARROW = (torch.float16, torch.bfloat16)


def off_grid(y: Tensor, scale: Tensor, zero_point: Tensor) -> float:
    """Return how far the values lie off their grid, in steps."""
    steps = y.double() / scale.double() + zero_point
    return float((steps - steps.round()).abs().max())


@pytest.mark.parametrize("learned", KINDS)
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("power_of_two", [False, True])
def test_activations_of_every_width(
    learned: str | None, dtype: torch.dtype, power_of_two: bool
) -> None:
    x = (3 * torch.randn(3000, generator=torch.Generator().manual_seed(0)) + 1).to(dtype)
    for bits in range(4, 17):
        spec = replace(INT8_ACTIVATION, bits=bits, power_of_two=power_of_two)
        quantizer = Recipe(learned=learned).activation_quantizer(spec)
        quantizer.phase = Phase.CALIBRATE
        quantizer(x)
        update_scales_([quantizer])
        for phase in (Phase.TRAIN, Phase.FROZEN):
            quantizer.phase = phase
            given = x.clone().requires_grad_()
            y = quantizer(given)
            assert off_grid(y.detach(), quantizer.scale, quantizer.zero_point) < 0.01, bits
            assert y.dtype == (dtype if represents(dtype, spec) else torch.float32)
            y.sum().backward()
            assert given.grad is not None
            assert given.grad.dtype == dtype


@pytest.mark.parametrize("learned", [None, "lsq"])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_of_every_width(
    learned: str | None, dtype: torch.dtype, axis: int | None, symmetric: bool
) -> None:
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    for bits in range(4, 17):
        spec = replace(
            INT8_WEIGHT, bits=bits, channel_axis=axis, symmetric=symmetric, signed=symmetric
        )
        quantizer = Recipe(learned=learned).weight_quantizer(spec, num_channels=6)
        if isinstance(quantizer, LsqWeightQuantizer):
            quantizer.initialise_(weight.float())
        for phase in (Phase.TRAIN, Phase.FROZEN):
            quantizer.phase = phase
            y = quantizer(weight)
            scale, zero_point = quantizer.scale_and_zero_point(weight.float())
            if axis == 0:
                scale, zero_point = scale[:, None], zero_point[:, None]
            assert off_grid(y.detach(), scale, zero_point) < 0.01, bits


def test_which_formats_a_dtype_represents() -> None:
    eight, four = QuantSpec(power_of_two=True), QuantSpec(bits=4)
    assert represents(torch.float32, QuantSpec(bits=16))
    assert represents(torch.bfloat16, eight)
    assert not represents(torch.bfloat16, QuantSpec(bits=9, power_of_two=True))
    assert not represents(torch.bfloat16, four), "the scale itself has more digits"
    assert nearly_represents(torch.float16, QuantSpec())
    assert not nearly_represents(torch.float16, QuantSpec(bits=9))
    assert nearly_represents(torch.bfloat16, four)
    assert not nearly_represents(torch.bfloat16, QuantSpec())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.up, self.last = nn.ConvTranspose2d(4, 4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.a(x)))
        y = self.up(F.relu(self.b(y))).flatten(2)
        y = torch.matmul(y.transpose(1, 2), y @ y.transpose(1, 2))
        z: Tensor = self.last(y)
        return z


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("learned", [None, "lsq"])
@pytest.mark.parametrize("training", [True, False])
def test_layers_under_autocast_compute_with_quantized_values(
    bits: int, learned: str | None, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(
        weight=replace(INT8_WEIGHT, bits=bits),
        activation=replace(INT8_ACTIVATION, bits=bits),
        learned=learned,
    )
    net = Net().eval()
    graph, x = prepare(net, recipe), torch.randn(2, 3, 8, 8)
    set_phase(graph.quantizers, Phase.CALIBRATE)
    with torch.no_grad():
        graph(x)
    update_scales_(list(graph.activations().values()))
    initialise_weights_(graph.layers())
    set_phase(graph.quantizers, Phase.TRAIN)
    net.train(training)
    net.norm.momentum = 0.0
    exact = graph(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(graph(x), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
        graph(x).sum().backward()
        set_phase(graph.quantizers, Phase.OFF)
        assert graph(x).dtype == torch.bfloat16, "autocast runs layers that are not quantized"


def test_a_layer_of_few_bits_runs_in_autocasts_dtype_if_its_input_has_few_too() -> None:
    recipe = Recipe(weight=replace(INT8_WEIGHT, bits=4), activation=INT8_ACTIVATION)
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    quantized = QuantizedLayer(recipe.weight_quantizer(recipe.weight, num_channels=4))
    quantized.weight.phase = Phase.TRAIN
    of = {bits: recipe.activation_quantizer(replace(INT8_ACTIVATION, bits=bits)) for bits in (4, 8)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [quantized(x, layer, source=source).dtype for source in (of[4], of[8], None)]
    assert found == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("dtype", NARROW)
def test_a_model_in_half_precision_keeps_its_dtype(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph, x = prepare(net.to(dtype).eval(), Recipe(outputs=False)), torch.randn(2, 3, 6, 6)
    set_phase(graph.quantizers, Phase.CALIBRATE)
    with torch.no_grad():
        plain = graph(x.to(dtype))
        update_scales_(list(graph.activations().values()))
        set_phase(graph.quantizers, Phase.FROZEN)
        rounded = graph(x.to(dtype))
    assert rounded.dtype == plain.dtype == dtype
    assert (rounded - plain).abs().max() < 0.1 * plain.abs().max()
    assert set(SIGNIFICANDS) == set(NARROW)


def test_products_leave_autocast_only_if_all_tensors_are_float32() -> None:
    matmul = on_the_grid(torch.matmul)
    x, y = torch.randn(3, 4), torch.randn(4, 5)
    wanted = x @ y
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for found in (matmul(x, y), matmul(x, other=y)):
            assert found.dtype == torch.float32
            assert torch.equal(found, wanted)
        for found in (matmul(x, y.bfloat16()), matmul(x.bfloat16(), other=y)):
            assert found.dtype == torch.bfloat16
        assert torch.matmul(x, y).dtype == torch.bfloat16  # Autocast is on again.
    assert torch.equal(matmul(x, y), wanted)
    assert on_the_grid(len)([1, 2]) == 2  # Without a tensor.
    assert on_the_grid(torch.matmul) is matmul
    assert matmul.__name__ == "matmul"
