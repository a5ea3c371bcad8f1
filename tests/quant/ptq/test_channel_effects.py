"""Channels that matter more for the outputs weigh more in the search for a range."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.observers.range_search import LARGEST_WEIGHT, WeightedMseObserver
from dq.quant.ptq.calibration import calibrate_
from dq.quant.ptq.channel_effects import channel_effects, signed_sum
from dq.quant.quantizers.phase import Phase
from dq.quant.recipes.recipe import Recipe
from tests.quant.nets import images


class Unequal(nn.Module):
    """Channel 0 has values a hundred times as large as those of others and a thousandth of weight.

    Args:
        frozen: No parameter asks for a gradient.
    """

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.first.weight[0] *= 100
            self.second.weight[:, 0] *= 1e-3
        for parameter in self.parameters():
            parameter.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.nn.functional.silu(self.first(x)))


def calibrated(observer: str, **net: bool) -> QuantizedGraph:
    graph = prepare(Unequal(**net).eval(), Recipe(observer=observer))
    with torch.no_grad():
        calibrate_(graph, images(), lambda batch: len(graph(batch)))
    return graph


@pytest.mark.parametrize("frozen", [False, True])
def test_effects_are_the_squared_derivatives_of_the_outputs(frozen: bool) -> None:
    graph = prepare(Unequal(frozen=frozen).eval(), Recipe())
    found = channel_effects(graph, torch.split(images()[0][:4], 2), graph.activations())
    (name,) = [n for n in found if "silu" in n]
    # The derivative by a channel is a column of the last weight, at one place; the output's own
    # quantizer has derivative 1 for all channels alike.
    weight = graph.root.second.weight.detach().double()
    wanted = weight.square().sum((0, 2, 3))
    torch.testing.assert_close(
        found[name] / found[name].max(), wanted / wanted.max(), rtol=0.15, atol=0
    )
    outputs = found["second/out"]
    torch.testing.assert_close(outputs / outputs.max(), torch.ones(4).double(), rtol=1e-6, atol=0)
    assert all(q.phase is Phase.OFF for q in graph.activations().values())
    assert all(p.grad is None for p in graph.root.parameters())


def test_a_tensor_without_channels_or_without_effect_is_left_out() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dead = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.dead.weight.data.zero_()

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            gate = y.mean((1, 2, 3)) * y.amax((1, 2, 3))
            return self.dead(y * y) + gate.reshape(-1, 1, 1, 1) * 0.5

    torch.manual_seed(0)
    graph = prepare(Net().eval(), Recipe())
    found = channel_effects(graph, torch.split(images()[0][:2], 1), graph.activations())
    shapes = {name: tuple(effects.shape) for name, effects in found.items()}
    assert "mul/out" in graph.activations()  # One number for each image.
    assert shapes == {
        "x/out": (3,), "conv/out": (4,), "dead/out": (4,), "mul#1/out": (1,), "add/out": (4,)
    }  # fmt: skip


def test_signs_are_random_and_a_sum_is_relative_to_the_power() -> None:
    y = torch.full((40, 50), 3.0)
    totals = [float(signed_sum(y, torch.Generator().manual_seed(seed))) for seed in range(300)]
    # A sum of n random signs, divided by the root of n, has mean 0 and variance 1.
    assert abs(sum(totals) / 300) < 0.2
    assert sum(t * t for t in totals) / 300 == pytest.approx(1.0, abs=0.25)
    assert float(signed_sum(torch.zeros(3), torch.Generator())) == 0.0


def test_a_range_serves_the_channels_that_matter() -> None:
    plain, weighted = calibrated("mse"), calibrated("weighted_mse")
    (name,) = [n for n in plain.activations() if "silu" in n]
    assert float(weighted.activations()[name].observer.range_max) < 0.5 * float(
        plain.activations()[name].observer.range_max
    )
    x = images(1)[0]
    with torch.no_grad():
        wanted = Unequal().eval()(x)
        errors = [float((graph(x) - wanted).square().mean()) for graph in (plain, weighted)]
    assert errors[1] < 0.3 * errors[0]


def test_an_end_that_costs_little_is_not_clipped() -> None:
    graph = calibrated("weighted_mse")
    (name,) = [n for n in graph.activations() if "silu" in n]
    low = float(graph.activations()[name].observer.range_min)
    assert low == pytest.approx(-0.2785, abs=1e-3)


def test_a_value_counts_as_often_as_its_channel_weighs() -> None:
    x = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    weighted, plain = WeightedMseObserver(), WeightedMseObserver()
    weighted.weigh_channels_(torch.tensor([3.0, 1.0]))
    assert weighted.channel_weights.tolist() == [LARGEST_WEIGHT, round(LARGEST_WEIGHT / 3)]
    weighted.channel_weights = torch.tensor([3, 1])
    for layout in (x, x.to(memory_format=torch.channels_last), x.double()):
        weighted.observe(layout)
    for _ in range(3):
        for part in (x[:, :1], x[:, :1], x[:, :1], x[:, 1:]):
            plain.observe(part)
    assert torch.equal(weighted.batch_counts, plain.batch_counts)
    weighted.update_()
    plain.update_()
    assert weighted.range_max == plain.range_max
    weighted.stop_collecting_()
    assert len(weighted.channel_weights) == 0


def test_tensors_of_other_shapes_count_each_value_once() -> None:
    observer = WeightedMseObserver()
    observer.weigh_channels_(torch.tensor([3.0, 1.0]))
    for shape in ((7,), (4, 3), ()):
        observer.observe(torch.randn(shape))
    assert int(observer.batch_counts.sum()) == 7 + 12 + 1


def test_inputs_that_are_no_single_tensor_give_all_channels_the_same_weight(
    caplog: pytest.LogCaptureFixture,
) -> None:
    graph = prepare(Unequal().eval(), Recipe(observer="weighted_mse"))
    data = [(batch,) for batch in images()]
    with caplog.at_level(logging.INFO), torch.no_grad():
        calibrate_(graph, data, lambda batch: len(graph(*batch)))
    assert all(q.has_range for q in graph.activations().values())
