"""The places of quantizers: the exact set of sites in small nets; OFF is the float model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare, prepare_part
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.graph.trace_with_fallback import trace_tolerantly
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe, Rule

torch.set_num_threads(1)


class Net(nn.Module):
    """Modules by name and a forward pass that calls them."""

    def __init__(self, function: Callable[[Net, Tensor], object], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def conv(cin: int = 3, cout: int = 4, **options: int) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, padding=1, **options)


def sites(net: nn.Module, recipe: Recipe | None = None) -> set[str]:
    return {site.name for site in prepare(net, recipe or Recipe()).sites}


def test_conv_norm_activation_is_one_layer() -> None:
    net = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4), nn.BatchNorm2d(4))
    assert sites(net) == {"0+1", "3+4", "x/out", "2/out", "3/out"}


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Hardswish, nn.Mish, nn.GELU, nn.LeakyReLU])
def test_activation_functions_are_fused(activation: type[nn.Module]) -> None:
    assert sites(nn.Sequential(conv(), activation(), conv(4))) == {
        "0",
        "2",
        "x/out",
        "1/out",
        "2/out",
    }


def test_group_norm_is_fused_in_float() -> None:
    net = nn.Sequential(conv(), nn.GroupNorm(2, 4), nn.ReLU(), conv(4))
    assert sites(net) == {"0", "3", "x/out", "2/out", "3/out"}


def test_norm_after_activation_stays_separate_before_a_convolution() -> None:
    """mmcv's order act, norm, conv: the norm has no layer before it."""
    net = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), conv())
    assert sites(net) == {"2", "1/out", "2/out"}


def test_norm_after_activation_is_not_folded() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4), conv(4))
    assert sites(net) == {"0", "3", "x/out", "2/out", "3/out"}


def test_output_read_twice_is_not_folded() -> None:
    def forward(net: Net, x: Tensor) -> object:
        y = net.a(x)
        return net.norm(y) + net.b(y)

    net = Net(forward, a=conv(), norm=nn.BatchNorm2d(4), b=conv(4))
    assert sites(net) == {"a", "b", "x/out", "a/out", "b/out", "norm/out", "add/out"}


def test_shared_head_has_one_weight_and_one_range_per_level() -> None:
    def forward(net: Net, x: Tensor) -> object:
        levels = (x, F.max_pool2d(x, 2))
        return [net.last(net.act(net.head(level))) for level in levels]

    net = Net(forward, head=conv(), act=nn.ReLU(), last=conv(4))
    graph = prepare(net, Recipe())
    assert {s.name for s in graph.sites} == {
        "head",
        "last",
        "x/out",
        "act/out",
        "act#1/out",
        "last/out",
        "last#1/out",
    }
    assert {s.name: s.call for s in graph.sites if s.call} == {"act#1/out": 1, "last#1/out": 1}
    calls = [str(n.target) for n in graph.graph.nodes if n.op == "call_module"]
    assert calls.count("quantizers.head.weight") == 1
    assert calls.count("quantizers.head") == 2


def test_shared_head_quantizes_its_weight_once_and_trains_the_same() -> None:
    net = Net(lambda n, x: n.head(x) + n.head(x * 0.5), head=conv())
    graph = prepare(net, Recipe())
    set_phase(graph.quantizers["head"], Phase.TRAIN)
    x = torch.randn(2, 3, 5, 5)
    calls = []
    quantizer = graph.quantizers["head"].weight
    assert isinstance(quantizer, nn.Module)
    quantizer.register_forward_hook(lambda *_: calls.append(1))
    out = graph(x)
    out.sum().backward()
    rounded = quantizer(net.head.weight).detach().requires_grad_()  # type: ignore[union-attr]
    bias = net.head.bias
    expected = F.conv2d(x, rounded, bias, padding=1) + F.conv2d(x * 0.5, rounded, bias, padding=1)
    expected.sum().backward()
    assert len(calls) == 2  # One in the graph, one above.
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(net.head.weight.grad, rounded.grad)


def test_one_norm_per_level_gives_one_folded_weight_per_level() -> None:
    """As in RetinaSepBN: one convolution, one batch norm per level."""

    def forward(net: Net, x: Tensor) -> object:
        return net.norm0(net.head(x)), net.norm1(net.head(F.max_pool2d(x, 2)))

    net = Net(forward, head=conv(), norm0=nn.BatchNorm2d(4), norm1=nn.BatchNorm2d(4))
    assert sites(net) == {"head+norm0", "head+norm1", "x/out", "head/out", "head#1/out"}


def test_squeeze_and_excitation() -> None:
    def forward(net: Net, x: Tensor) -> object:
        y = net.act(net.stem(x))
        gate = net.gate(net.expand(net.relu(net.reduce(net.pool(y)))))
        return net.last(y * gate)

    net = Net(
        forward,
        stem=conv(),
        act=nn.SiLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        reduce=nn.Conv2d(4, 2, 1),
        relu=nn.ReLU(),
        expand=nn.Conv2d(2, 4, 1),
        gate=nn.Sigmoid(),
        last=conv(4),
    )
    layers = {"stem", "reduce", "expand", "last"}
    tensors = {"x/out", "act/out", "pool/out", "relu/out", "gate/out", "mul/out", "last/out"}
    assert sites(net) == layers | tensors


def test_concatenation_gives_its_parts_one_range() -> None:
    net = Net(lambda n, x: n.last(torch.cat([n.a(x), n.b(x)], 1)), a=conv(), b=conv(), last=conv(8))
    assert sites(net) == {"a", "b", "last", "x/out", "cat/out", "last/out"}


def test_part_of_a_concatenation_with_other_readers_has_its_own_quantizer() -> None:
    def forward(net: Net, x: Tensor) -> object:
        a = net.a(x)
        return net.last(torch.cat([a, net.b(a)], 1)), a.shape[2]

    net = Net(forward, a=conv(), b=conv(4), last=conv(8))
    assert sites(net) == {"a", "b", "last", "x/out", "a/out", "cat/out", "last/out"}


def test_addition_reads_and_writes_integers() -> None:
    net = Net(lambda n, x: n.last(F.relu(n.a(x) + n.b(x))), a=conv(), b=conv(), last=conv(4))
    assert sites(net) == {
        *("a", "b", "last", "x/out"),
        *("a/out", "b/out", "relu/out", "last/out"),
    }


@pytest.mark.parametrize(
    "carry",
    [
        nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2),
        nn.PixelUnshuffle(1),
        nn.Identity(),
        nn.ReflectionPad2d(1),
    ],
)
def test_carriers_keep_the_range(carry: nn.Module) -> None:
    assert sites(nn.Sequential(conv(), carry, conv(4))) == {"0", "2", "x/out", "0/out", "2/out"}


def test_pixel_shuffle_keeps_the_range() -> None:
    net = nn.Sequential(conv(3, 8), nn.PixelShuffle(2), conv(2))
    assert sites(net) == {"0", "2", "x/out", "0/out", "2/out"}


@pytest.mark.parametrize(
    "average",
    [
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(3),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    ],
)
def test_averages_are_quantized_again(average: nn.Module) -> None:
    """Their values lie between the integers of the input."""
    net = nn.Sequential(conv(), average, conv(4))
    assert sites(net) == {"0", "2", "x/out", "0/out", "1/out", "2/out"}


def test_interpolation_to_another_size_reads_only_the_shape() -> None:
    def forward(net: Net, x: Tensor) -> object:
        a, b = net.a(x), net.b(x)
        return net.last(a + F.interpolate(b, size=a.shape[2:], mode="nearest"))

    net = Net(forward, a=conv(), b=conv(3, 4, stride=2), last=conv(4))
    tensors = {"x/out", "a/out", "b/out", "add/out", "last/out"}
    assert sites(net) == {"a", "b", "last"} | tensors


def test_coordinates_computed_from_shapes_are_not_quantized() -> None:
    def forward(net: Net, x: Tensor) -> object:
        grid = x.new_zeros(x.shape[0], 1, x.shape[2], x.shape[3])
        return net.last(net.a(x) + grid)

    assert sites(Net(forward, a=conv(), last=conv(4))) == {
        *("a", "last"),
        *("x/out", "add/out", "last/out"),
    }


def test_product_with_a_parameter_belongs_to_the_layer_before_it() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    net = nn.Sequential(conv(), Scale(), conv(4))
    assert sites(net) == {"0", "2", "x/out", "1/mul/out", "2/out"}


def test_standardised_weight_is_quantized_after_standardisation() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    net = nn.Sequential(Standardised(3, 4, 3), nn.ReLU(), conv(4))
    graph = prepare(net, Recipe())
    names = {(s.name, s.kind) for s in graph.sites}
    assert ("0/conv2d/weight", "parameter") in names
    assert {n for n, k in names if k == "activation"} == {"x/out", "1/out", "2/out"}
    set_phase(graph.quantizers, Phase.TRAIN)
    quantizer = graph.quantizers["0/conv2d/weight"]
    seen: list[Tensor] = []
    quantizer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    graph(torch.randn(1, 3, 8, 8)).sum().backward()
    assert all(len(channel.unique()) <= 27 for channel in seen[0])
    assert net[0].weight.grad is not None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (2, 4)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
        (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5)),
        (nn.Conv1d(4, 3, 3), (2, 4, 7)),
        (nn.Conv3d(4, 3, 2), (2, 4, 3, 3, 3)),
    ],
)
def test_every_kind_of_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    net = nn.Sequential(layer)
    x = torch.randn(shape)
    expected = net(x)
    graph = prepare(net, Recipe())
    assert {s.name for s in graph.sites} == {"0", "x/out", "0/out"}
    assert torch.equal(graph(x), expected)
    assert float((quantized(graph, x) - expected).detach().abs().max()) < 0.1


def quantized(graph: QuantizedGraph, x: Tensor) -> Tensor:
    set_phase(graph.quantizers, Phase.CALIBRATE)
    graph(x)
    update_scales_(list(graph.activations().values()))
    set_phase(graph.quantizers, Phase.FROZEN)
    result = graph(x)
    assert isinstance(result, Tensor)
    return result


def test_rule_leaves_a_layer_float() -> None:
    net = nn.Sequential(conv(), nn.ReLU(), conv(4))
    recipe = Recipe(rules=(Rule(module="2", quantize=False),))
    assert sites(net, recipe) == {"0", "x/out", "0/out"}


def test_outputs_may_stay_float() -> None:
    assert sites(nn.Sequential(conv()), Recipe(outputs=False)) == {"0", "x/out"}


def test_off_is_the_float_model_and_keys_stay() -> None:
    net = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4))
    twin, x = copy.deepcopy(net), torch.randn(2, 3, 6, 6)
    graph = prepare(net, Recipe())
    assert torch.equal(graph(x), twin(x))
    own = {k for k in net.state_dict() if not k.startswith("quantizers.")}
    assert own == set(twin.state_dict())
    with pytest.raises(ValueError, match="prepared already"):
        prepare(net, Recipe())


def test_training_and_evaluation_may_differ() -> None:
    """As in FCOS, which scales its boxes by the stride only in evaluation."""

    def forward(net: Net, x: Tensor) -> object:
        y = net.b(F.relu(net.a(x)))
        return y if net.training else y * 8

    net = Net(forward, a=conv(), b=conv(4))
    x = torch.randn(1, 3, 5, 5)
    net.train()
    in_training = net(x)
    net.eval()
    in_evaluation = net(x)
    traced = trace_tolerantly(net, net.forward, x)
    graph = prepare(net, Recipe(), traced)
    assert {s.name for s in graph.sites} == {"a", "b", "x/out", "relu/out", "b/out"}
    assert torch.equal(graph(x), in_evaluation)
    net.train()
    assert torch.equal(graph(x), in_training)
    names = [str(n.target) for n in graph.training_graph.nodes]  # type: ignore[union-attr]
    assert "quantizers.relu/out" in names


def test_what_training_alone_computes_stays_float() -> None:
    """As an auxiliary head, which nobody exports: it has no ranges that calibration could fill."""

    def forward(net: Net, x: Tensor) -> object:
        y = net.b(F.relu(net.a(x)))
        return (
            [y, net.aux(y).sigmoid() * F.conv2d(y, net.aux.weight, padding=1)]
            if net.training
            else [y]
        )

    net = Net(forward, a=conv(), b=conv(4), aux=conv(4))
    x = torch.randn(1, 3, 5, 5)
    traced = trace_tolerantly(net.eval(), net.forward, x)
    graph = prepare(net, Recipe(), traced)
    wanted = {"a", "b", "x/out", "relu/out", "b/out"}
    assert {s.name for s in graph.sites} == wanted
    assert set(net.quantizers) == wanted  # type: ignore[arg-type]
    assert len(graph(x)) == 1
    net.train()
    assert len(graph(x)) == 2


def test_separate_part_has_its_own_quantizers_in_the_same_model() -> None:
    net = Net(lambda n, x: n.a(x), a=conv(), b=nn.Linear(4, 2))
    whole = prepare(net, Recipe())
    x = torch.randn(3, 4)
    expected = net.b(x)  # type: ignore[operator]
    part = prepare_part(whole, Recipe(), trace_tolerantly(net, net.b, x), "b")  # type: ignore[arg-type]
    assert whole.parts == {"b": part}
    assert {s.name for s in part.sites} == {"b", "b/x/out", "b/out"}
    assert set(whole.quantizers) == {"a", "x/out", "a/out", "b", "b/x/out", "b/out"}
    assert [site.name for site, *_ in whole.layers()] == ["a"]
    assert torch.equal(part(x), expected)
    assert float((quantized(part, x) - expected).detach().abs().max()) < 0.1


def test_mask_is_not_quantized_and_only_selects() -> None:
    """As in SOLO, which keeps the local maxima of its scores."""

    def forward(net: Net, x: Tensor) -> object:
        y = net.a(x)
        keep = F.max_pool2d(y, 3, 1, 1) == y
        return net.b(y * keep.float())

    net = Net(forward, a=conv(), b=conv(4))
    assert sites(net) == {"a", "b", "x/out", "mul/out", "b/out"}


@pytest.mark.parametrize(
    ("average", "name"),
    [
        (lambda x: F.avg_pool2d(x, 2), "avg_pool2d"),
        (lambda x: F.adaptive_avg_pool2d(x, 2), "adaptive_avg_pool2d"),
        (lambda x: x.mean((2, 3), keepdim=True), "mean"),
        (lambda x: torch.mean(x, 2, keepdim=True), "mean"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "interpolate"),
    ],
)
def test_averages_called_as_functions_too(average: Callable[[Tensor], Tensor], name: str) -> None:
    net = Net(lambda n, x: n.b(average(n.a(x))), a=conv(), b=conv(4))
    assert sites(net) == {"a", "b", "x/out", "a/out", f"{name}/out", "b/out"}
