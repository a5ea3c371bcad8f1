"""Cross-layer equalization: same float function, much less error of per-tensor weights."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dq.quant.graph.per_channel.relu6_limits import ChannelClip
from dq.quant.graph.prepare import prepare
from dq.quant.ptq import equalization
from dq.quant.ptq.equalization import equalize_, input_extent, output_extent, pairs
from dq.quant.quantizers.layers import QuantizedLayer
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import INT8_WEIGHT, Recipe
from tests.quant.nets import Separable, calibrated_sqnr, images

PER_TENSOR = Recipe(weight=replace(INT8_WEIGHT, channel_axis=None), free_clips=True)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_the_float_function_stays_and_the_quantized_one_recovers(
    activation: type[nn.Module],
) -> None:
    torch.manual_seed(0)
    net = Separable(activation).eval()
    x = images(5)[0]
    with torch.no_grad():
        want = net(x)
        graph = prepare(net, PER_TENSOR)
        before = calibrated_sqnr(graph)
        assert equalize_(graph) == 5
        set_phase(graph.quantizers, Phase.OFF)
        got = graph(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    assert calibrated_sqnr(graph) > before + 6


def test_afterwards_both_layers_have_the_same_range_in_every_channel() -> None:
    torch.manual_seed(0)
    graph = prepare(Separable().eval(), PER_TENSOR)
    equalize_(graph)
    for pair in pairs(graph):
        first, _ = QuantizedLayer.folded(pair.first, pair.norm)
        second, _ = QuantizedLayer.folded(pair.second, pair.second_norm)
        given, taken = output_extent(pair.first, first), input_extent(pair.second, second)
        torch.testing.assert_close(given, taken, rtol=0.02, atol=0)


def test_relu6_saturates_as_before_and_changes_only_in_the_graph() -> None:
    torch.manual_seed(0)
    net = Separable(nn.ReLU6).eval()
    keys = list(net.state_dict())
    graph = prepare(net, PER_TENSOR)
    clips = [m for m in graph.quantizers.modules() if isinstance(m, ChannelClip)]
    assert len(clips) == 5
    equalize_(graph)
    assert any(float((clip.limit - 6).abs().max()) > 1 for clip in clips)
    assert [k for k in net.state_dict() if not k.startswith("quantizers.")] == keys
    again = prepare(Separable(nn.ReLU6), PER_TENSOR)
    again.root.load_state_dict(net.state_dict())
    set_phase(graph.quantizers, Phase.OFF)
    x = images()[0]
    again.root.eval()
    torch.testing.assert_close(again(x), graph(x))


class Awkward(nn.Module):
    """Cases that cannot be equalized: two readers, a shared layer, a nonlinear activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.shared, self.d, self.e = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = self.b(x) + self.c(x)
        x = self.shared(self.shared(x).relu()).relu()
        return self.e(self.act(self.d(x)))


def test_layers_that_a_factor_cannot_pass_do_not_change() -> None:
    assert pairs(prepare(Awkward(), Recipe())) == []


def test_a_norm_without_its_own_scale_or_shift_does_not_change() -> None:
    for lacking, number in (((), 1), (("weight",), 0), (("bias",), 0), (("weight", "bias"), 0)):
        net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
        for name in lacking:
            net[1].register_parameter(name, None)
        assert len(pairs(prepare(net.eval(), Recipe()))) == number


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (nn.ConvTranspose2d(3, 8, 2, groups=1), nn.Conv2d(8, 4, 1, groups=2)),
        (nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2, groups=2)),
        (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)),
        (nn.Linear(6, 8), nn.Linear(8, 4)),
    ],
)
def test_transposed_grouped_and_linear_layers(first: nn.Module, second: nn.Module) -> None:
    net = nn.Sequential(first, nn.ReLU(), second)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        want = net(x)
        graph = prepare(net, Recipe())
        before = [p.clone() for p in net.parameters()]
        assert equalize_(graph) == 1
        torch.testing.assert_close(graph(x), want, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def two_layers(first: list[float], second: list[float]) -> tuple[nn.Sequential, equalization.Pair]:
    """Return two layers of one weight for each channel, and the pair that they are."""
    net = nn.Sequential(nn.Conv2d(1, len(first), 1), nn.ReLU(), nn.Conv2d(len(first), 1, 1))
    net[0].weight.data = torch.tensor(first).reshape(-1, 1, 1, 1)
    net[0].bias.data.fill_(1.0)
    net[2].weight.data = torch.tensor(second).reshape(1, -1, 1, 1)
    (pair,) = pairs(prepare(net.eval(), Recipe()))
    return net, pair


def test_a_factor_is_the_root_of_the_quotient_within_its_limits_and_1_for_dead_channels() -> None:
    first = [8.0, 2.0, 1e-13, 5.0, 2e-12, 3e11, 4e-10]
    second = [2.0, 8.0, 1.0, 1e-13, 2e-12, 1.0, 1e2]
    net, pair = two_layers(first, second)
    with torch.no_grad():
        found = equalization._equalize_pair_(pair)
    wanted = [2.0, 0.5, 1.0, 1.0, 1.0, 4096.0, 1 / 4096]
    assert found.tolist() == pytest.approx(wanted)
    factors = torch.tensor(wanted)
    torch.testing.assert_close(net[0].weight.flatten(), torch.tensor(first) / factors)
    torch.testing.assert_close(net[0].bias, 1 / factors)
    torch.testing.assert_close(net[2].weight.flatten(), torch.tensor(second) * factors)


def test_it_stops_when_nothing_changes_and_after_the_last_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, pair = two_layers([8.0, 2.0], [2.0, 8.0])
    worst = [torch.tensor([1.5, 1.0]), torch.tensor([1.0, 0.9]), torch.tensor([1.0005, 0.9995])]
    calls: list[int] = []

    def factors(_: equalization.Pair) -> Tensor:
        calls.append(len(calls))
        return worst[min(len(calls) - 1, 2)]

    monkeypatch.setattr(equalization, "pairs", lambda graph: [pair])
    monkeypatch.setattr(equalization, "_equalize_pair_", factors)
    for more, passes in (({}, 3), ({"rounds": 2}, 2), ({"tolerance": 0.2}, 2), ({"rounds": 0}, 0)):
        calls.clear()
        assert equalize_(prepare(Awkward(), Recipe()), **more) == 1
        assert len(calls) == passes, more
