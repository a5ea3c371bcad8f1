"""A quantized layer with its batch norm equals the float model without quantization error."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dq.quant.graph.prepare import prepare
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.fake_quantize import WeightQuantizer
from dq.quant.quantizers.layer_types import declare_padding_layers
from dq.quant.quantizers.layers import QuantizedLayer, num_outputs, output_axis
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe

torch.set_num_threads(1)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


class Unrounded(WeightQuantizer):
    """A weight quantizer that works in every phase and changes nothing."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 1.0


LAYERS: dict[str, Callable[[bool], tuple[nn.Module, nn.Module, tuple[int, ...]]]] = {
    "conv1d": lambda b: (nn.Conv1d(4, 6, 3, padding=1, bias=b), nn.BatchNorm1d(6), (4, 4, 9)),
    "conv2d": lambda b: (nn.Conv2d(4, 6, 3, stride=2, bias=b), nn.BatchNorm2d(6), (4, 4, 9, 8)),
    "conv3d": lambda b: (nn.Conv3d(4, 6, 2, bias=b), nn.BatchNorm3d(6), (2, 4, 5, 4, 4)),
    "depthwise": lambda b: (nn.Conv2d(4, 8, 3, groups=4, bias=b), nn.BatchNorm2d(8), (4, 4, 7, 7)),
    "grouped": lambda b: (nn.Conv2d(4, 6, 3, groups=2, bias=b), nn.BatchNorm2d(6), (4, 4, 7, 7)),
    "transposed1d": lambda b: (
        nn.ConvTranspose1d(4, 6, 3, stride=2, bias=b),
        nn.BatchNorm1d(6),
        (4, 4, 6),
    ),
    "transposed2d": lambda b: (
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, bias=b),
        nn.BatchNorm2d(6),
        (4, 4, 5, 5),
    ),
    "transposed_grouped": lambda b: (
        nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2, bias=b),
        nn.BatchNorm2d(6),
        (4, 4, 5, 5),
    ),
    "transposed3d": lambda b: (
        nn.ConvTranspose3d(4, 6, 2, groups=2, bias=b),
        nn.BatchNorm3d(6),
        (2, 4, 4, 3, 3),
    ),
    "reflecting": lambda b: (
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=b),
        nn.BatchNorm2d(6),
        (4, 4, 6, 6),
    ),
    "linear": lambda b: (nn.Linear(4, 6, bias=b), nn.BatchNorm1d(6), (16, 4)),
}


def float_pair(
    kind: str, bias: bool, affine: bool, dtype: torch.dtype
) -> tuple[nn.Sequential, tuple[int, ...]]:
    torch.manual_seed(0)
    layer, norm, shape = LAYERS[kind](bias)
    assert isinstance(norm, _BatchNorm)
    norm = type(norm)(norm.num_features, affine=affine)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    if affine:
        with torch.no_grad():
            # Positive, negative, dead.
            norm.weight.copy_(torch.linspace(-1.5, 1.5, norm.num_features))
            norm.weight[1] = 0.0
            norm.bias.normal_()
    return nn.Sequential(layer, norm).to(dtype), shape


def prepared(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the prepared model's forward pass in phase TRAIN, with float values."""
    graph = prepare(model, Recipe())
    for child in graph.quantizers.values():
        if isinstance(child, QuantizedLayer):
            child.weight = Unrounded(child.weight.spec)
    set_phase(graph.quantizers, Phase.OFF)
    for _, quantized, _, _ in graph.layers():
        set_phase(quantized, Phase.TRAIN)
    return graph


def results(forward: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Run two steps and return output, gradients and buffers of the float model's names."""
    x = x.clone().requires_grad_()
    for _ in range(2):
        y = forward(x)
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape)
        (y.square() * weights).mean().backward()
    assert x.grad is not None
    found = {"output": y.detach(), "input": x.grad}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[f"gradient of {name}"] = parameter.grad
    for name, buffer in model.named_buffers():
        if not name.startswith("quantizers."):
            found[f"buffer {name}"] = buffer
    return found


def compare(model: nn.Sequential, x: Tensor, tolerance: float) -> None:
    twin = copy.deepcopy(model)
    expected = results(model, model, x)
    got = results(prepared(twin), twin, x)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_equals_the_float_model(kind: str, training: bool, dtype: torch.dtype) -> None:
    for bias, affine in itertools.product((True, False), repeat=2):
        model, shape = float_pair(kind, bias, affine, dtype)
        model.train(training)
        compare(model, torch.randn(shape, dtype=dtype) * 2 + 0.5, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_cumulative_average_of_statistics(dtype: torch.dtype) -> None:
    model, shape = float_pair("conv2d", False, True, dtype)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.momentum = None
    compare(model.train(), torch.randn(shape, dtype=dtype), TOLERANCE[dtype])
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_frozen_norm_while_the_rest_trains(dtype: torch.dtype) -> None:
    first, shape = float_pair("conv2d", True, True, dtype)
    model = nn.Sequential(
        first, nn.ReLU(), nn.Conv2d(6, 5, 1, dtype=dtype), nn.BatchNorm2d(5, dtype=dtype)
    )
    model.train()
    first[1].eval()
    before = first[1].running_mean.clone()  # type: ignore[union-attr,operator]
    compare(model, torch.randn(shape, dtype=dtype), TOLERANCE[dtype])
    assert torch.equal(first[1].running_mean, before)  # type: ignore[arg-type]


def test_norm_may_be_replaced_after_prepare() -> None:
    class OtherNorm(_BatchNorm):
        def _check_input_dim(self, input: Tensor) -> None:
            pass

    model, shape = float_pair("conv2d", False, True, torch.float64)
    twin = copy.deepcopy(model)
    graph = prepared(twin)
    norm = OtherNorm(6).double()
    norm.load_state_dict(model[1].state_dict())
    twin[1] = norm
    x = torch.randn(shape, dtype=torch.float64)
    expected, got = results(model, model, x), results(graph, twin, x)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10)
    assert norm.num_batches_tracked == 2


def test_dead_channel_keeps_statistics_and_gradient_when_quantized() -> None:
    model, shape = float_pair("conv2d", False, True, torch.float32)
    twin = copy.deepcopy(model)
    graph = prepare(twin, Recipe())
    for _, quantized, _, _ in graph.layers():
        set_phase(quantized, Phase.TRAIN)
    x = torch.randn(shape)
    expected, got = results(model, model, x), results(graph, twin, x)
    for name in ("buffer 1.running_mean", "buffer 1.running_var", "gradient of 1.weight"):
        torch.testing.assert_close(got[name][1], expected[name][1])


@pytest.mark.parametrize("kind", ["conv2d", "transposed_grouped", "linear", "depthwise"])
def test_training_quantizes_the_weight_of_inference(kind: str) -> None:
    """Training applies the folded, fake-quantized weight of inference, unfolded."""
    model, shape = float_pair(kind, False, True, torch.float32)
    layer, norm = model
    assert isinstance(norm, _BatchNorm)
    axis = output_axis(layer)
    spec = QuantSpec(bits=3, signed=True, symmetric=True, channel_axis=axis)
    quantized = QuantizedLayer(WeightQuantizer(spec))
    set_phase(quantized, Phase.TRAIN)
    x = torch.randn(shape)
    quantized.train()
    model.train()
    norm.momentum = 0.0  # Running statistics stay; the batch's own statistics normalise.
    trained = quantized(x, layer, norm)
    weight, scale, zero_point = quantized.quantized_weight(layer, norm)
    integers = quantized.weight(weight) / scale.reshape(
        [-1 if d == axis else 1 for d in range(weight.dim())]
    )
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-4)
    assert zero_point.abs().max() == 0
    assert num_outputs(layer) == norm.num_features
    # y = conv(x, unfolded) normalised by its own statistics is invariant to each channel's factor.
    direct = copy.deepcopy(layer)
    with torch.no_grad():
        direct.weight.copy_(quantized.weight(weight))
    y = direct(x)
    dims = [d for d in range(y.dim()) if d != 1]
    shape_of = [1, -1, *[1] * (y.dim() - 2)]
    centred = y - y.mean(dims, keepdim=True)
    unit = centred / y.std(dims, keepdim=True, unbiased=False)
    expected = unit * norm.weight.abs().reshape(shape_of) + norm.bias.reshape(shape_of)
    live = norm.weight.abs() > 0.2
    torch.testing.assert_close(trained[:, live], expected[:, live], rtol=1e-2, atol=1e-2)


def test_autocast_and_one_compiled_graph() -> None:
    model, shape = float_pair("conv2d", True, True, torch.float32)
    graph = prepare(model.train(), Recipe())
    for _, quantized, _, _ in graph.layers():
        set_phase(quantized, Phase.TRAIN)
    x = torch.randn(shape)
    expected = graph(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = graph(x)
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.1)
    torch._dynamo.reset()
    compiled = torch.compile(graph.function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(model, x), expected)


class SamePadding(nn.Conv2d):
    """Pads depending on the size of its input, like TensorFlow's SAME."""

    def forward(self, x: Tensor) -> Tensor:
        missing = [(-size) % stride for size, stride in zip(x.shape[2:], self.stride, strict=True)]
        if max(missing) > 0:
            x = nn.functional.pad(x, [0, missing[1], 0, missing[0]])
        return super().forward(x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_layer_that_pads_its_input_is_folded_too(bias: bool, training: bool) -> None:
    declare_padding_layers(SamePadding)
    torch.manual_seed(0)
    model = nn.Sequential(SamePadding(3, 4, 3, stride=2, bias=bias), nn.BatchNorm2d(4)).double()
    compare(model.train(training), torch.randn(2, 3, 7, 6, dtype=torch.float64), 1e-10)
