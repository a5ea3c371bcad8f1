"""Changing the width after calibration, with observed and learned scales."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dq.quant.analysis.sensitivity import output_sqnr, sensitivities
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph, quantizer_of
from dq.quant.ptq.widths import add_headroom_, raise_bits_, set_bits_
from dq.quant.quantizers.factory import LEARNED, initialise_weights_
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import RAISED_BITS, Recipe
from tests.quant.nets import images

KINDS = (None, *LEARNED)


class Standardised(nn.Conv2d):
    """A convolution whose weight the graph computes."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.middle = Standardised(8, 8, 3)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.middle(self.norm(self.stem(x)).relu()).relu())
        return y


def calibrated(learned: str | None, bits: int = 8, observer: str = "moving_average"):
    recipe = Recipe(learned=learned, observer=observer)
    recipe = replace(
        recipe,
        weight=replace(recipe.weight, bits=bits),
        activation=replace(recipe.activation, bits=bits),
    )
    graph = prepare(Net().eval(), recipe)
    set_phase(graph.quantizers, Phase.CALIBRATE)
    with torch.no_grad():
        for batch in images()[:2]:
            graph(batch)
        update_scales_(list(graph.activations().values()))
    initialise_weights_(graph.layers())
    set_phase(graph.quantizers, Phase.FROZEN)
    return graph


def names_of(graph: QuantizedGraph) -> list[str]:
    return [site.name for site in graph.sites]


@pytest.mark.parametrize("learned", KINDS)
@pytest.mark.parametrize("observer", ["moving_average", "mse"])
def test_sixteen_bits_are_sixteen_bits_for_every_kind(learned: str | None, observer: str) -> None:
    graph = calibrated(learned, observer=observer)
    few = images()[:1]
    before = output_sqnr(graph, few)
    raise_bits_(graph, names_of(graph))
    assert all(quantizer_of(graph, name).spec.bits == RAISED_BITS for name in names_of(graph))
    after = output_sqnr(graph, few)
    assert before < 50
    assert after > 65, "the only remaining loss would be clipping, and these images are not clipped"
    again = calibrated(learned, bits=16)
    assert after > output_sqnr(again, few) - 6


@pytest.mark.parametrize("learned", ["lsq", "lsq+", "pact"])
def test_ranges_that_training_has_widened_are_covered_too(learned: str) -> None:
    graph = calibrated(learned)
    quantizer = graph.activations()["x/out"]
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(3.0)
    low, high = (float(end) * 2.9 for end in _range(quantizer))
    wide = torch.linspace(low, high, 100)
    raise_bits_(graph, ["x/out"])
    assert (quantizer(wide) - wide).abs().max() < 1e-3


def _range(quantizer: ActivationQuantizer) -> tuple[Tensor, Tensor]:
    return quantizer.observer.range_min.clone(), quantizer.observer.range_max.clone()


@pytest.mark.parametrize("learned", KINDS)
def test_headroom_works_for_every_kind(learned: str | None) -> None:
    graph = calibrated(learned, bits=16)
    quantizer = graph.activations()["x/out"]
    before = float(quantizer.scale)
    add_headroom_(graph)
    assert float(quantizer.scale) == pytest.approx(1.5 * before, rel=1e-3)
    beyond = images()[0]
    beyond = beyond / beyond.abs().max() * 1.4 * float(quantizer.observer.range_max) / 1.5
    assert (quantizer(beyond) - beyond).abs().max() < 1e-3
    narrow = calibrated(learned)
    scale = float(narrow.activations()["x/out"].scale)
    add_headroom_(narrow)
    assert float(narrow.activations()["x/out"].scale) == scale


@pytest.mark.parametrize("learned", KINDS)
def test_a_rank_with_the_state_sets_only_the_bits(learned: str | None) -> None:
    graph, other = calibrated(learned), calibrated(learned)
    raise_bits_(graph, names_of(graph))
    other.root.load_state_dict(graph.root.state_dict())
    set_bits_(other, names_of(graph))
    assert torch.equal(graph(images()[0]), other(images()[0]))
    state = graph.root.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in other.root.state_dict().items())


@pytest.mark.parametrize("learned", KINDS)
def test_weights_that_the_graph_computes_have_a_sensitivity(learned: str | None) -> None:
    graph = calibrated(learned)
    found = sensitivities(graph, images()[:1])
    assert {s.name for s in found} == set(names_of(graph))
    assert {s.kind for s in found} == {"weight", "parameter", "activation"}


@pytest.mark.parametrize("function", [sensitivities, output_sqnr])
def test_phases_are_restored_when_an_image_fails(function) -> None:
    graph = calibrated(None)
    set_phase(graph.quantizers, Phase.TRAIN)
    for batches in ([torch.zeros(1, 5, 8, 8)], [images()[0], torch.zeros(1, 5, 8, 8)]):
        with pytest.raises(RuntimeError):
            function(graph, batches)
        for quantizer in graph.activations().values():
            assert isinstance(quantizer, ActivationQuantizer)
            assert quantizer.phase is Phase.TRAIN
