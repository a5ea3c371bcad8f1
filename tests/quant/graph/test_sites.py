"""The quantizers of a network with every kind of layer: names, owners, norms and channel axes."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dq.quant.graph import writes
from dq.quant.graph.per_channel.relu6_limits import ChannelClip
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import quantizer_of
from dq.quant.recipes.recipe import INT8_WEIGHT, Recipe


class Kinds(nn.Module):
    """A norm that is folded, a shared layer, computed weights, a norm that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.shared, self.up = nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 6, 2)
        self.weight = nn.Parameter(torch.randn(6, 6, 1, 1))
        self.fc, self.fc_norm = nn.Linear(6, 5), nn.BatchNorm1d(5)
        self.alone = nn.Conv2d(6, 2, 1)
        self.alone_norm = nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu6(self.norm(self.stem(x)))
        x = self.shared(F.relu(self.shared(x)))
        x = F.relu(self.up(x))
        x = F.conv2d(x, self.weight - self.weight.mean())
        x = F.conv_transpose2d(x, self.weight * 2)
        return self.fc_norm(self.fc(x.mean((2, 3)))), self.alone_norm(self.alone(x))


SITES = [
    ("stem+norm", "weight", "stem", 0, "norm"),
    ("shared", "weight", "shared", 0, None),
    ("up", "weight", "up", 0, None),
    ("conv2d/weight", "parameter", "", 0, None),
    ("conv_transpose2d/weight", "parameter", "", 0, None),
    ("fc+fc_norm", "weight", "fc", 0, "fc_norm"),
    ("alone", "weight", "alone", 0, None),
    *((f"{name}/out", "activation", name, 0, None) for name in ("x", "relu6", "relu", "shared")),
    ("relu#1/out", "activation", "relu", 1, None),
    *(
        (f"{name}/out", "activation", name, 0, None)
        for name in ("conv2d", "conv_transpose2d", "mean", "fc", "alone")
    ),
]
AXES = {"up": 1, "conv_transpose2d/weight": 1}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("free_clips", [True, False])
def test_every_quantizer_has_its_place_and_its_axis(per_channel: bool, free_clips: bool) -> None:
    weight = INT8_WEIGHT if per_channel else replace(INT8_WEIGHT, channel_axis=None)
    graph = prepare(Kinds().eval(), Recipe(weight=weight, free_clips=free_clips))
    assert [astuple(site) for site in graph.sites] == SITES
    for site in graph.sites:
        axis = quantizer_of(graph, site.name).spec.channel_axis
        is_weight = site.kind != "activation" and per_channel
        assert axis == (AXES.get(site.name, 0) if is_weight else None), site.name
    clips = [m for m in graph.quantizers.modules() if isinstance(m, ChannelClip)]
    assert len(clips) == free_clips
    # The weight of a layer for two levels is rounded once.
    targets = [str(node.target) for node in graph.graph.nodes]
    assert targets.count("quantizers.shared.weight") == 1
    assert targets.count("quantizers.up.weight") == targets.count("quantizers.alone.weight") == 0
    names = {name: type(q).__name__ for name, q in graph.quantizers.items()}
    assert set(names) >= {site[0] for site in SITES}


def called(function: object, *args: object, **kwargs: object) -> fx.Node:
    graph = fx.Graph()
    x = graph.placeholder("x")
    return graph.call_function(function, (x, *args), kwargs)  # type: ignore[arg-type]


def test_in_place_is_recognised_and_removed_by_name_and_by_position() -> None:
    for node, is_in_place, args, kwargs in (
        (called(F.relu, True), True, (False,), {}),
        (called(F.relu, False), False, (False,), {}),
        (called(F.relu), False, (), {}),
        (called(F.relu, inplace=True), True, (), {"inplace": False}),
        (called(F.relu, inplace=False), False, (), {"inplace": False}),
        (called(F.leaky_relu, 0.2, True), True, (0.2, False), {}),
        (called(F.leaky_relu, 0.2), False, (0.2,), {}),
        (called(F.dropout, 0.5, False, True), True, (0.5, False, False), {}),
        (called(F.hardtanh, -1.0, 1.0, True), True, (-1.0, 1.0, False), {}),
        (called(torch.add, True), False, (True,), {}),
        (called(F.softmax, 1), False, (1,), {}),
    ):
        assert writes._inplace_of(node) is is_in_place
        assert writes._without_inplace(node) is is_in_place
        assert node.args[1:] == args
        assert node.kwargs == kwargs


def test_the_variant_without_an_underscore() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    variant = writes._out_of_place_variant
    assert variant(graph.call_method("add_", (x, x))) == "add"
    assert variant(graph.call_method("set_", (x, x))) is None
    assert variant(graph.call_function(torch.relu_, (x,))) is torch.relu
    assert variant(graph.call_function(F.elu_, (x,))) is F.elu
    assert variant(graph.call_function(torch.relu, (x,))) is None
    assert variant(graph.call_function(torch._foreach_add_, (x,))) is torch._foreach_add
