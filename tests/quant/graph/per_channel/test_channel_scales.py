"""Where the channels of a quantizer's input can be scaled, and that new scales change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from dq.quant.graph.nodes import module_of
from dq.quant.graph.per_channel.channel_scales import (
    ChannelScale,
    scale_channels_of_,
    scale_key,
    scaled_at,
    scaled_names,
)
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset


class Branches(nn.Module):
    """SiLU before a layer, before two layers, before a sum, and before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Conv2d(4, 4, 1) for _ in range(4))
        self.five = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.line = nn.Linear(5, 3)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.one(x))
        x = self.act(self.two(x))
        x = self.act(self.three(x)) + self.act(self.four(x))
        return self.line(self.act(self.five(x)))


def places(graph: QuantizedGraph) -> dict[str, bool]:
    """Return, for each quantizer that can be scaled, whether the layer before it is divided."""
    found = {}
    for node in graph.graph.nodes:
        assert isinstance(node, fx.Node)
        if isinstance(module_of(graph.root, node), ActivationQuantizer):
            place = scaled_at(graph.root, node)
            if place is not None:
                found[str(node.target).partition(".")[2]] = place.layer is not None
    return found


@pytest.mark.parametrize("target", ["int8", "openvino", "tensorrt", "onnxruntime", "qnn"])
def test_only_what_convolutions_alone_read_can_be_scaled(target: str) -> None:
    graph = prepare(Branches().eval(), preset(target))
    divides = target in ("onnxruntime", "qnn")
    # The input, and what the second convolution, the two after it, and the fifth read: after SiLU
    # twice, and after the sum.
    functions = {name: kind for name, kind in places(graph).items() if name.startswith("act")}
    assert list(functions.values()) == [divides, divides]


@pytest.mark.parametrize("target", ["int8", "onnxruntime"])
@pytest.mark.parametrize("training", [False, True])
def test_new_scales_change_nothing_and_survive_a_state_dict(target: str, training: bool) -> None:
    torch.manual_seed(0)
    recipe = preset(target)
    graph = prepare(Branches().eval(), recipe)
    x = torch.randn(2, 4, 5, 5)
    wanted = graph(x)
    names = [name for name in places(graph) if name.startswith("act")]
    scale_channels_of_(graph, names)
    assert scaled_names(graph) == tuple(names)
    graph.root.train(training)
    torch.testing.assert_close(graph(x), wanted, rtol=0, atol=0)
    for name in names:
        scale = graph.quantizers[scale_key(name)]
        assert isinstance(scale, ChannelScale)
        scale.factor.copy_(torch.tensor([1.0, 2.0, 0.5, 4.0]))
    changed = graph(x)
    assert not torch.equal(changed, wanted)
    scale_channels_of_(graph, names)  # A second time does nothing.
    assert torch.equal(graph(x), changed)

    again = prepare(Branches().eval(), replace(recipe, scaled=tuple(names)))
    again.root.load_state_dict(graph.root.state_dict())
    set_phase(again.quantizers, Phase.OFF)
    again.root.train(training)
    assert torch.equal(again(x), changed)


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 5), (2, 4, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_channel_has_its_factor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    scale = ChannelScale(4)
    x = torch.randn(shape).to(dtype)
    assert torch.equal(scale(x), x)
    scale.factor.copy_(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    y = scale(x)
    assert y.dtype == dtype
    for channel, factor in enumerate((1, 2, 4, 8)):
        assert torch.equal(y[:, channel], x[:, channel] * factor)
