"""Integer arithmetic in torch gives the results of ONNX Runtime, bit for bit."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dq.quant.export.onnx_graph import flatten
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.bias_overflow import fit_biases_
from dq.quant.integer.convert import integer_network
from dq.quant.integer.engine.functions import silu
from dq.quant.integer.engine.graph import compute_exactly_, exact_network
from dq.quant.integer.engine.layers import ExactLayer
from dq.quant.numerics.spec import QuantSpec
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe, Rule
from dq.quant.verify.onnxruntime_session import OnnxNetwork
from tests.quant.exported import exported
from tests.quant.nets import calibrate

pytestmark = pytest.mark.cpu

# On other processors ONNX Runtime sums with other instructions and in another order.
on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="ONNX Runtime's sums are known bit for bit only on x86",
)


class Detector(nn.Module):
    """The parts of a detector: stem, blocks with sums, a pyramid, a shared head."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), activation()
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.linear = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), activation())
        self.lateral = nn.Conv2d(32, 16, 1)
        self.side = nn.Conv2d(16, 16, 1)
        self.joined = nn.Conv2d(32, 16, 3, padding=2, dilation=2)
        self.head = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), activation(), nn.Conv2d(16, 6, 1)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        c1 = self.pool(self.stem(x))
        c1 = c1 + self.linear(self.depthwise(c1))
        c2 = self.down(c1)
        p2 = self.lateral(c2)
        p1 = torch.relu(F.interpolate(p2, scale_factor=2.0, mode="nearest") + c1)
        joined = torch.relu(self.joined(torch.cat([p1, torch.relu(self.side(p1))], 1)))
        return [self.head(joined), self.head(p2)]


def images(seed: int, num: int = 2) -> Tensor:
    return torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def quantized(recipe: Recipe, net: nn.Module | None = None) -> QuantizedGraph:
    torch.manual_seed(0)
    net = Detector() if net is None else net
    for _ in range(5):
        net(images(9))
    graph = prepare(net.eval(), recipe)
    calibrate(graph, [images(seed) for seed in range(4)])
    return graph


def kinds_of(network: fx.GraphModule) -> list[str]:
    called = [n for n in network.graph.nodes if n.op == "call_module"]
    return [type(network.get_submodule(str(n.target))).__name__ for n in called]


RECIPES = {
    "int8": Recipe(),
    "power of two": preset("int8_power2"),
    "signed activations": Recipe(activation=QuantSpec(bits=8, signed=True)),
    "weights of 6 bits, per tensor": Recipe(
        weight=QuantSpec(bits=6, signed=True, symmetric=True, channel_axis=None)
    ),
    "outputs in float": Recipe(outputs=False),
    "lsq": Recipe(learned="lsq"),
    "no zero points": Recipe(zero_points=False),
}  # fmt: skip


def fast(*names: str, of: Iterable[str]) -> list[Any]:
    """Return all names as parameters; the tests of the others are slow, because each exports."""
    return [pytest.param(n, marks=() if n in names else pytest.mark.slow) for n in of]


@on_x86
@torch.no_grad()
@pytest.mark.parametrize("name", fast("int8", "lsq", of=RECIPES))
def test_every_value_is_that_of_onnxruntime(name: str) -> None:
    graph = quantized(RECIPES[name])
    network = exact_network(graph)
    model = OnnxNetwork(exported(graph, images(0), fit_biases_))
    assert isinstance(network, fx.GraphModule)
    for seed in range(20, 30):
        x = images(seed)
        found, expected = flatten(network(x))[0], model.tensors(x)
        for one, other in zip(found, expected, strict=True):
            if name == "outputs in float":  # The sums of the last layers are in float in both.
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(one, other), f"{(one != other).sum()} of {one.numel()}"


@torch.no_grad()
def test_all_layers_and_sums_are_exact_and_near_the_fake_quantized_ones() -> None:
    graph = quantized(Recipe())
    network = exact_network(graph)
    assert isinstance(network, fx.GraphModule)
    kinds = kinds_of(network)
    # The head's two layers are called twice.
    assert kinds.count("ExactLayer") == 11
    assert kinds.count("ExactSum") == 2
    assert not {"IntegerLayer", "IntegerActivation", "ReLU", "ReLU6"} & set(kinds)
    outputs = zip(network(images(7)), graph(images(7)), strict=True)
    for name, (one, other) in zip(("head/2/out", "head/2#1/out"), outputs, strict=True):
        scales_apart = ((one - other) / graph.activations()[name].scale).abs()
        assert scales_apart.mean() < 0.25
        assert scales_apart.max() < 4


@torch.no_grad()
def test_the_graph_itself_does_not_change() -> None:
    graph = quantized(Recipe())
    before, state = graph(images(5)), {k: v.clone() for k, v in graph.root.state_dict().items()}
    exact_network(graph)
    for one, other in zip(before, graph(images(5)), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(v, state[k]) for k, v in graph.root.state_dict().items())


@torch.no_grad()
def test_layers_that_engines_compute_in_float_do_not_change() -> None:
    network = integer_network(quantized(Recipe(), Detector(nn.SiLU)))
    assert compute_exactly_(network) > 0
    kinds = kinds_of(network)
    # Stem, down, and the head's first layer, which is called twice.
    assert kinds.count("IntegerLayer") == 4
    functions = [n.target for n in network.graph.nodes if n.op == "call_function"]
    assert functions.count(silu) == 4
    mixed = Recipe(rules=(Rule(module="depthwise.*", bits=16), Rule(module="lateral", bits=4)))
    network = integer_network(quantized(mixed))
    compute_exactly_(network)
    # The depthwise layer, the 4-bit layer, and the readers of both; one has no bias.
    kinds = kinds_of(network)
    assert kinds.count("IntegerLayer") + kinds.count("FloatLayer") == 4


@torch.no_grad()
@pytest.mark.parametrize(
    "call", [torch.relu, F.relu, lambda x: x.relu(), lambda x: x.relu_(), nn.ReLU(), nn.ReLU6()]
)
def test_an_activation_that_its_quantizer_repeats_is_dropped_however_it_is_called(
    call: Callable[[Tensor], Tensor],
) -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
            if isinstance(call, nn.Module):
                self.activation = call

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(call(self.one(x)))
            return y

    network = exact_network(quantized(Recipe(), Called()))
    assert isinstance(network, fx.GraphModule)
    assert sorted(kinds_of(network)) == ["ExactLayer", "ExactLayer", "ExactQuantizer"]
    assert not [n for n in network.graph.nodes if n.op in ("call_function", "call_method")]


@torch.no_grad()
def test_a_product_or_a_scaled_sum_is_no_plain_sum() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.relu(self.one(x)), torch.relu(self.two(x))
            y: Tensor = self.last(torch.add(a * b, b, alpha=2))
            return y

    graph = quantized(Recipe(), Gate())
    network = exact_network(graph)
    assert isinstance(network, fx.GraphModule)
    assert kinds_of(network).count("ExactSum") == 0
    assert kinds_of(network).count("ExactLayer") == 3
    found, expected = network(images(7)), graph(images(7))
    steps_apart = (found - expected).abs() / graph.activations()["last/out"].scale
    assert steps_apart.mean() < 0.25


@on_x86
@torch.no_grad()
@pytest.mark.parametrize("name", fast("w4a8", of=("w4a8", "w4a4")))
def test_layers_in_float_differ_from_onnxruntime_at_few_ties(name: str) -> None:
    """The order of float sums is not known, but the engine's biases and roundings are."""
    graph = quantized(preset(name))
    network = exact_network(graph)
    model = OnnxNetwork(exported(graph, images(0), fit_biases_))
    for seed in range(20, 24):
        x = images(seed)
        for one, other in zip(flatten(network(x))[0], model.tensors(x), strict=True):
            assert float((one != other).float().mean()) < 1e-3


def test_graph_without_quantizers_is_its_own_exact_network() -> None:
    graph = quantized(Recipe(rules=(Rule(module="*", quantize=False),)))
    assert exact_network(graph) is graph


def test_graph_without_ranges_is_its_own_exact_network() -> None:
    graph = prepare(Detector().eval(), Recipe())
    assert exact_network(graph) is graph


@torch.no_grad()
def test_activation_limit_inside_the_range_is_kept() -> None:
    graph = quantized(Recipe())
    graph.activations()["depthwise/2/out"].scale.fill_(10 / 255)  # Beyond the 6 of ReLU6.
    network = integer_network(graph)
    compute_exactly_(network)
    assert "ReLU6" in kinds_of(network)


@torch.no_grad()
@pytest.mark.parametrize(("num_inputs", "dtype"), [(8, torch.float32), (600, torch.float64)])
def test_sums_are_those_of_integers(num_inputs: int, dtype: torch.dtype) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(num_inputs, 4, 3, padding=1)
            # The largest possible sums.
            self.conv.weight.data = torch.full_like(self.conv.weight, 0.5).copysign(
                torch.randn(4, 1, 1, 1)
            )

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y

    torch.manual_seed(0)
    graph = prepare(Wide().eval(), Recipe())
    x = torch.rand(1, num_inputs, 6, 6)
    calibrate(graph, [x])
    network = exact_network(graph)
    assert isinstance(network, fx.GraphModule)
    (layer,) = [m for m in network.modules() if isinstance(m, ExactLayer)]
    assert layer.weight.dtype == dtype
    before, after = layer.input_quantizer, layer.output_quantizer
    integers = before.shifted(before(x)).long()
    assert layer.bias is not None
    total = F.conv2d(F.pad(integers, [1] * 4), layer.weight.long(), layer.bias.long())
    if num_inputs > 8:
        assert total.abs().max() > 2**24
    expected = (total.float() * layer.multiplier).round()
    expected = expected.clamp(after.lowest, after.highest) * after.scale
    assert torch.equal(network(x), expected)
