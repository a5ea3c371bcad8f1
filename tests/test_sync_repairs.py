"""Repairs by one rank's calibration reach every rank: float parameters and quantizer state."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dq.dist.exchange import collectives
from dq.quant.analysis.sensitivity import Sensitivity
from dq.quant.graph.per_channel.channel_scales import (
    ChannelScale,
    scale_channels_of_,
    scale_key,
    scaled_names,
)
from dq.quant.graph.prepare import prepare
from dq.quant.ptq.channel_scales import scale_channels_
from dq.quant.ptq.equalization import equalize_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import INT8_WEIGHT, Recipe
from dq.sync import calibrate_on_one_rank, sensitivities_over_ranks, share_channel_scales_
from tests.processes.ranks import run_ranks
from tests.quant.graph.per_channel.test_channel_scales import Branches, places
from tests.quant.nets import Separable, calibrate, images
from tests.quant.ptq.test_channel_scales import stem

pytestmark = pytest.mark.cpu


def repair_on_one_rank() -> dict[str, Any]:
    torch.manual_seed(0)
    recipe = Recipe(weight=replace(INT8_WEIGHT, channel_axis=None), free_clips=True)
    net = Separable(torch.nn.ReLU6).eval()
    before = net.head.weight.detach().clone()
    graph = prepare(net, recipe)

    def work() -> None:
        equalize_(graph)
        calibrate(graph, images())

    calibrate_on_one_rank(graph, work)
    set_phase(graph.quantizers, Phase.FROZEN)
    with torch.no_grad():
        y = graph(images(1)[0])
    return {
        "rank": collectives.rank(),
        "moved": float((net.head.weight.detach() - before).abs().max()),
        "y": y,
    }


def test_all_ranks_have_the_repaired_weights() -> None:
    first, second = run_ranks(repair_on_one_rank, 2)
    assert second["moved"] > 0.01
    torch.testing.assert_close(first["y"], second["y"])


def scale_on_one_rank(source: int) -> dict[str, Any]:
    graph, _ = stem(Recipe())
    if collectives.rank() == source:
        scale_channels_(graph, images(), most=1)
    share_channel_scales_(graph, source=source)
    calibrate_on_one_rank(graph, lambda: calibrate(graph, images()), rank=source)
    set_phase(graph.quantizers, Phase.FROZEN)
    with torch.no_grad():
        y = graph(images(1)[0])
    return {"scaled": scaled_names(graph), "state": graph.root.state_dict(), "y": y}


def test_all_ranks_scale_the_channels_that_one_has_scaled() -> None:
    first, second = run_ranks(scale_on_one_rank, 2, 1)
    assert first["scaled"] == second["scaled"] == ("act/out",)
    assert first["state"].keys() == second["state"].keys()
    assert all(torch.equal(t, second["state"][name]) for name, t in first["state"].items())
    assert torch.equal(first["y"], second["y"])


def scale_the_last_first() -> dict[str, torch.Tensor]:
    """Scale two tensors on rank 0 in the reverse order of the graph, with factors of their own."""
    torch.manual_seed(0)
    graph = prepare(Branches().eval(), preset("int8"))

    def work() -> None:
        calibrate(graph, [torch.randn(2, 4, 5, 5)])

    if collectives.rank() == 0:
        for name in reversed(list(places(graph))[:2]):
            scale_channels_of_(graph, (name,))
            scale = graph.quantizers[scale_key(name)]
            assert isinstance(scale, ChannelScale)
            scale.factor.fill_(len(scaled_names(graph)) + 1)
    share_channel_scales_(graph)
    calibrate_on_one_rank(graph, work)
    return graph.root.state_dict()


def test_ranks_agree_in_whichever_order_one_has_scaled() -> None:
    first, second = run_ranks(scale_the_last_first, 2)
    factors = [float(t[0]) for name, t in first.items() if name.endswith(".factor")]
    assert sorted(factors) == [2.0, 3.0]
    assert list(first) == list(second)
    assert all(torch.equal(t, second[name]) for name, t in first.items())


def measured(source: int) -> tuple[list[Sensitivity], dict[str, torch.Tensor]]:
    """Calibrate on one rank, measure on all; only that rank has images and ranges before."""
    source = min(source, collectives.world_size() - 1)
    torch.manual_seed(0)
    graph = prepare(Separable().train(), Recipe(observer="mse"))
    few: list[torch.Tensor] = []
    if collectives.rank() == source:
        graph.root.eval()
        calibrate(graph, images())
        few = images(1, num=12)
    found = sensitivities_over_ranks(graph, few, source=source)
    assert not graph.root.training
    assert all(q.phase is Phase.FROZEN for q in graph.activations().values())
    return found, graph.quantizers.state_dict()


def test_any_number_of_ranks_finds_the_same_sensitivities() -> None:
    alone, state = measured(0)
    assert len(alone) == len({s.name for s in alone}) > 10
    for number in (2, 3):
        for found, others in run_ranks(measured, number, 1):
            assert found == alone
            assert all(torch.equal(others[name], tensor) for name, tensor in state.items())
