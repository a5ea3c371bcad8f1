"""A scale for each channel: same float function, less rounding error where channels differ."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dq.quant.graph.per_channel.channel_scales import scaled_names
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.spec import QuantSpec
from dq.quant.ptq import channel_scales
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


def channels(spec: QuantSpec) -> channel_scales._Channels:
    """Return channels from -1 to 3, from -2 to 1 and from 0 to 8, with effects 1, 10 and 100."""
    low, high, effect = torch.tensor(
        [[-1.0, -2.0, 0.0], [3.0, 1.0, 8.0], [1.0, 10.0, 100.0]]
    ).double()
    return channel_scales._Channels(low=low, high=high, effect=effect, spec=spec)


@pytest.mark.parametrize(
    ("spec", "alone", "halved"),
    [
        (QuantSpec(), 10.0 / 255, 6.0 / 255),  # The last channel reaches 4 if it is halved.
        (QuantSpec(signed=True, symmetric=True), 8.0 / 127, 4.0 / 127),
        (QuantSpec(symmetric=True), 8.0 / 255, 4.0 / 255),
    ],
)
def test_the_noise_is_that_of_one_step_for_all_channels(
    spec: QuantSpec, alone: float, halved: float
) -> None:
    factors = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 2.0]]).double()
    found = channel_scales._noise(channels(spec), factors)
    assert found.tolist() == pytest.approx([111 * alone**2, (11 + 400) * halved**2])


def test_with_its_factor_every_channel_reaches_an_end_of_the_range() -> None:
    full = channel_scales._full_ranges
    assert full(channels(QuantSpec(signed=True, symmetric=True)))[0].tolist() == [3 / 8, 2 / 8, 1]
    assert full(channels(QuantSpec(symmetric=True)))[0].tolist() == [3 / 8, 1 / 8, 1]
    candidates = full(channels(QuantSpec()))
    shares = torch.linspace(0.01, 0.95, 95).double()
    widths = [
        torch.maximum(high / (1 - shares), -low / shares)
        for low, high in ((-1, 3), (-2, 1), (0, 8))
    ]
    wanted = torch.stack(widths, 1)
    wanted /= wanted.amax(1, keepdim=True)
    torch.testing.assert_close(candidates, wanted)
    nothing = channel_scales._Channels(
        low=torch.zeros(2), high=torch.tensor([0.0, 1.0]), effect=torch.ones(2), spec=QuantSpec()
    )
    assert float(full(nothing).min()) == 2.0**-12


def test_the_best_factors_serve_all_tensors_of_a_place() -> None:
    one = channels(QuantSpec(signed=True, symmetric=True))
    gain = channel_scales._gain("a", [one])
    assert gain.factors.tolist() == [3 / 8, 2 / 8, 1]
    step = 8.0 / 127
    assert gain.before == pytest.approx(111 * step**2)
    assert gain.after == pytest.approx((9 / 64 + 10 * 4 / 64 + 100) * step**2)
    other = replace(one, effect=one.effect * 1000, high=torch.tensor([8.0, 8.0, 2.0]).double())
    both = channel_scales._gain("a", [one, other])
    assert both.before == pytest.approx(111 * 1001 * step**2)
    assert both.factors.tolist() == [1, 1, 2 / 8]  # That of the tensor with more noise.
    noises = [float(channel_scales._noise(each, both.factors)) for each in (one, other)]
    assert both.after == pytest.approx(sum(noises))


def test_the_ends_of_channels_are_those_of_all_images() -> None:
    graph, _ = stem(preset("int8"))
    x = torch.cat(images())[:5]
    found = channel_scales._channel_ends(graph, x, {"act/out": x})
    assert list(found) == ["act/out"]
    with torch.no_grad():
        y = nn.functional.silu(graph.root.norm(graph.root.stem(x)))
    low, high = found["act/out"]
    torch.testing.assert_close(low, y.amin((0, 2, 3)).clamp(max=0).double())
    torch.testing.assert_close(high, y.amax((0, 2, 3)).clamp(min=0).double())
    assert all(q.phase is Phase.OFF for q in graph.activations().values())
    assert channel_scales._ends(torch.ones(1, 2), [0])[0].tolist() == [0, 0]
    assert channel_scales._ends(-torch.ones(1, 2), [0])[1].tolist() == [0, 0]


def test_a_place_whose_reader_or_layer_is_called_twice_is_left_alone() -> None:
    class Twice(Stem):
        def __init__(self, twice: str) -> None:
            super().__init__()
            self.twice = twice

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.norm(self.stem(x)))
            if self.twice == "layer":
                x = x + self.act(self.norm(self.stem(x[:, :3])))
            y = self.depthwise(x)
            if self.twice == "reader":
                y = y + self.depthwise(x.flip(0))
            return self.head(self.act(self.point(y)))

    for twice, target in (("layer", "onnxruntime"), ("reader", "int8"), ("nothing", "int8")):
        torch.manual_seed(0)
        graph = prepare(Twice(twice).eval(), preset(target))
        places = channel_scales._places(graph)
        assert ("act/out" in places) == (twice == "nothing"), twice
        assert places or twice != "nothing"
