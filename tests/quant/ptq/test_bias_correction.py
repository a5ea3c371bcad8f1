"""Bias correction restores the mean of every layer's output."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.bias_correction import channels_last, correct_bias_, correct_layer_
from dq.quant.ptq.layer_walk import CapturedLayer, walk
from dq.quant.recipes.recipe import INT8_WEIGHT, Recipe
from tests.quant.nets import Separable, calibrate, images, sqnr, unseen

LOW = Recipe(weight=replace(INT8_WEIGHT, bits=4))


def outputs(graph: QuantizedGraph, *, rounded: bool) -> list[torch.Tensor]:
    """Return each layer's output, ``(positions, channels)``."""
    found = []

    def visit(captured: CapturedLayer) -> None:
        ys = captured.outputs() if rounded else captured.targets
        found.append(torch.cat([channels_last(y, captured.layer) for y in ys]))

    walk(graph, images(), visit, "test")
    return found


def test_mean_errors_vanish_with_and_without_batch_norm_and_the_output_gains() -> None:
    torch.manual_seed(0)
    net = Separable(unequal=False).eval()
    wanted = unseen(net)
    graph = prepare(net, LOW)
    calibrate(graph, images())
    targets = outputs(graph, rounded=False)

    def worst() -> float:
        pairs = zip(outputs(graph, rounded=True), targets, strict=True)
        return max(float(((y - t).mean(0) / t.std(0)).abs().max()) for y, t in pairs)

    before = sqnr(graph, wanted)
    worst_before = worst()
    assert worst_before > 0.05
    assert correct_bias_(graph, images()) == 6
    # The quantization of activations causes the rest.
    assert worst() < 0.2 * worst_before
    with torch.no_grad():
        assert sqnr(graph, wanted) > before + 0.5


def test_a_layer_without_bias_does_not_change() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph = prepare(net.eval(), LOW)
    calibrate(graph, images())
    weight = net[0].weight.clone()
    assert correct_bias_(graph, images()) == 1
    assert torch.equal(net[0].weight, weight)


def test_every_output_has_a_target_and_the_mean_is_over_all_of_them() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    graph = prepare(net, LOW)
    calibrate(graph, images())
    before = net[0].bias.detach().clone()
    seen = []

    def visit(captured: CapturedLayer) -> None:
        assert len(captured.inputs) == 4
        outputs = [y.detach() for y in captured.outputs()]
        with pytest.raises(ValueError, match="longer"):
            correct_layer_(captured, outputs[:3])
        net[0].bias.data.copy_(before)
        shifts = [y + torch.tensor([1.0, 2.0, 3.0, 4.0])[k] for k, y in enumerate(outputs)]
        assert correct_layer_(captured, shifts)
        seen.append(net[0].bias.detach().clone())
        net[0].bias.data.copy_(before)
        assert correct_layer_(captured, [y - 1 for y in outputs])
        seen.append(net[0].bias.detach().clone())

    walk(graph, images(), visit, "test")
    torch.testing.assert_close(seen[0], before + 2.5)
    torch.testing.assert_close(seen[1], before - 1)


class Shared(nn.Module):
    """A head shared by two levels, called level by level."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.down = nn.Conv2d(4, 4, 2, stride=2)
        self.tower = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(x)
        return [self.out(self.tower(level)) for level in (x, self.down(x))]


def test_a_shared_layer_is_visited_once_with_the_inputs_of_all_levels() -> None:
    graph = prepare(Shared().eval(), LOW)
    calibrate(graph, images())
    visited: dict[str, list[int]] = {}

    def visit(captured: CapturedLayer) -> None:
        assert captured.site.name not in visited
        visited[captured.site.name] = sorted({x.shape[-1] for x in captured.inputs})

    walk(graph, images(), visit, "test")
    assert visited == {"stem": [16], "down": [16], "tower/0": [8, 16], "out": [8, 16]}
