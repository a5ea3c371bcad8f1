"""Which ReLU6 get one limit per channel, and that each computes what it did."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.graph.per_channel.relu6_limits import ChannelClip
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe


class Clipped(nn.Module):
    """ReLU6 in every form, after what takes a limit per channel and after what does not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.line = nn.Linear(5, 5)
        self.norm, self.clip = nn.BatchNorm2d(4), nn.ReLU6()
        self.unit, self.last = nn.Hardtanh(0.0, 1.0), nn.Conv2d(4, 4, 1)
        self.out = nn.Conv2d(4, 4, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(x)  # Of the input.
        x = self.clip(self.norm(self.one(self.clip(self.line(x)))))  # Of a linear layer, of a norm.
        read_twice = self.two(x)
        x = F.relu6(read_twice) + read_twice
        x = self.unit(self.last(x))  # Another limit.
        y: Tensor = self.out(F.relu6(self.three(x)))
        return y


def clips(graph: QuantizedGraph) -> dict[str, ChannelClip]:
    found = graph.quantizers.named_children()
    return {name: module for name, module in found if isinstance(module, ChannelClip)}


@pytest.mark.parametrize("free", [True, False])
def test_only_relu6_that_read_a_convolution_of_images_get_limits(free: bool) -> None:
    torch.manual_seed(0)
    net = Clipped().eval()
    x = 9 * torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        wanted = net(x)
    graph = prepare(net, Recipe(free_clips=free))
    assert list(clips(graph)) == (["one+norm#0/clip", "three#1/clip"] if free else [])
    set_phase(graph.quantizers, Phase.OFF)
    with torch.no_grad():
        assert torch.equal(graph(x), wanted)
    for limited in clips(graph).values():
        limited.limit.fill_(0.5)
        with torch.no_grad():
            assert not torch.equal(graph(x), wanted)
        limited.limit.fill_(6.0)


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 5), (2, 4, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_channel_has_its_limit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    clip = ChannelClip(4)
    x = 9 * torch.randn(shape).to(dtype)
    assert torch.equal(clip(x), F.relu6(x))
    clip.limit.copy_(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    y = clip(x)
    assert y.dtype == dtype
    for channel, limit in enumerate((1, 2, 4, 8)):
        assert torch.equal(y[:, channel], x[:, channel].clamp(0, limit))
