"""Which weights are clipped: all that gain by it, wherever they are in the model."""

from __future__ import annotations

import torch
from torch import nn

from dq.quant.graph.prepare import prepare
from dq.quant.numerics.spec import QuantSpec
from dq.quant.ptq.weight_clipping import clip_weights_, restore_weights_
from dq.quant.recipes.recipe import Recipe

W4 = QuantSpec(bits=4, signed=True, symmetric=True, narrow=True, channel_axis=0)


def two_sizes() -> nn.Conv2d:
    """Return a layer whose weights have two absolute values: no narrower range is better."""
    layer = nn.Conv2d(4, 4, 1)
    layer.weight.data = torch.where(torch.randn(4, 4, 1, 1) > 0, 1.0, -1.0)
    return layer


def test_layers_that_gain_nothing_do_not_end_the_search() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(two_sizes(), nn.Conv2d(4, 4, 3), two_sizes(), nn.Conv2d(4, 4, 3)).eval()
    layers = list(net)
    before = [layer.weight.detach().clone() for layer in layers]
    graph = prepare(net, Recipe(weight=W4))
    changed = clip_weights_(graph)
    assert set(changed) == {"1", "3"}
    for layer, weight in zip(layers, before, strict=True):
        assert (layer.weight.abs() <= weight.abs()).all()
    restore_weights_(graph, changed)
    assert all(torch.equal(layer.weight, w) for layer, w in zip(layers, before, strict=True))


def test_a_weight_with_two_norms_is_left_alone_and_the_others_are_not() -> None:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
            self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.last(self.norms[1](self.shared(self.norms[0](self.shared(x)))))
            return y

    torch.manual_seed(0)
    assert set(clip_weights_(prepare(Levels().eval(), Recipe(weight=W4)))) == {"last"}
