"""A scale for each channel: same float function, less rounding error where channels differ."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dq.quant.graph.per_channel.channel_scales import scaled_names
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.channel_scales import scale_channels_
from dq.quant.ptq.repairs import calibrate_and_repair_
from dq.quant.ptq.settings import Repair
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe
from tests.quant.exported import exported
from tests.quant.nets import images, sqnr, unseen

CPU = torch.device("cpu")


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Stem(nn.Module):
    """One channel of the first layer is 300 times as large as the others, but hardly read."""

    def __init__(self, activation: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.act = activation()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.norm.weight.data[2] = 300.0
        self.norm.bias.data.uniform_(-0.5, 0.5)
        self.depthwise.weight.data[2] /= 300.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.act(self.norm(self.stem(x))))
        return self.head(self.act(self.point(x)))


def stem(recipe: Recipe, activation: type[nn.Module] = nn.SiLU) -> tuple[QuantizedGraph, Tensor]:
    """Return a prepared net and its outputs for `tests.quant.nets.images(1)`, before repairs."""
    torch.manual_seed(0)
    net = Stem(activation).eval()
    wanted = unseen(net)
    return prepare(net, recipe), wanted


def repaired(graph: QuantizedGraph, *steps: str, **more: int) -> None:
    def run(batch: Tensor) -> int:
        graph(batch)
        return len(batch)

    calibrate_and_repair_(graph, images(), run, CPU, repair=Repair(steps=steps, **more))


RECIPES = {
    **{name: preset(name) for name in ("int8", "openvino", "tensorrt", "onnxruntime", "qnn")},
    "ncnn": preset("ncnn"),
    "powers of two": preset("int8_power2"),
    "learned": replace(preset("int8"), learned="lsq+"),
    "4 bits": replace(preset("w4a4"), weight=preset("int8").weight),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_the_float_function_stays_and_the_quantized_one_recovers(recipe: Recipe) -> None:
    graph, wanted = stem(recipe)
    repaired(graph)
    before = sqnr(graph, wanted)
    graph, wanted = stem(recipe)
    names = scale_channels_(graph, images(), most=1)
    assert names == ["act/out"]
    set_phase(graph.quantizers, Phase.OFF)
    with torch.no_grad():
        for batch, want in zip(images(1), wanted, strict=True):
            torch.testing.assert_close(graph(batch), want, rtol=1e-4, atol=1e-5)
    graph, wanted = stem(recipe)
    repaired(graph, "channel_scales")
    assert scaled_names(graph)[0] == "act/out"
    assert sqnr(graph, wanted) > before + 6


@pytest.mark.parametrize("activation", [Swish, nn.Hardswish, nn.GELU, nn.Mish, nn.ELU])
@pytest.mark.parametrize("target", ["int8", "openvino", "onnxruntime"])
def test_through_every_function_that_does_not_commute_with_a_factor(
    target: str, activation: type[nn.Module]
) -> None:
    graph, wanted = stem(preset(target), activation)
    repaired(graph)
    before = sqnr(graph, wanted)
    graph, wanted = stem(preset(target), activation)
    repaired(graph, "channel_scales")
    is_split = target == "onnxruntime" and activation is not Swish
    # There the layer's own result is rounded too, with one scale for all channels.
    assert sqnr(graph, wanted) > before + (-0.5 if is_split else 6)


def test_equalization_does_it_without_a_multiplication_through_relu() -> None:
    graph, _ = stem(preset("int8"), nn.ReLU)
    assert scale_channels_(graph, images(), most=4) == []
    assert "channel" not in str(graph.graph)


def test_no_more_tensors_than_asked_for_and_none_that_gains_little() -> None:
    graph, _ = stem(preset("int8"))
    assert scale_channels_(graph, images(), most=0) == []
    assert scale_channels_(graph, [], most=4) == []
    assert scale_channels_(graph, images(), most=1) == ["act/out"]
    assert "act/out" not in scale_channels_(graph, images(), most=4)


@pytest.mark.parametrize("target", ["int8", "openvino", "onnxruntime"])
def test_the_export_multiplies_by_a_constant_and_computes_the_same(target: str) -> None:
    import onnxruntime

    graph, _ = stem(preset(target))
    repaired(graph, "channel_scales", "bias")
    x = images(1)[0][:1]
    model = exported(graph, x)
    multiplied = [
        node
        for node in model.graph.node
        if node.op_type == "Mul" and any(i.name in node.input for i in model.graph.initializer)
    ]
    assert len(multiplied) == len(scaled_names(graph)) > 0
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    set_phase(graph.quantizers, Phase.FROZEN)
    with torch.no_grad():
        want = graph(x)
    step = float(next(iter(reversed(graph.activations().values()))).scale)
    assert float((torch.from_numpy(got) - want).abs().max()) < 1.5 * step
    assert float((torch.from_numpy(got) - want).abs().mean()) < 0.05 * step
