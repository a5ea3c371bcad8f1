"""Sensitivity: the worst quantizer is found, and as few are raised as reach the target."""

import math

import pytest
import torch
from torch import Tensor, nn

from dq.quant.analysis.sensitivity import decibel, output_sqnr, ranked, sensitivities
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph, quantizer_of
from dq.quant.numerics.nested import floating_tensors
from dq.quant.ptq.mixed_precision import analyze, choose_raised_
from dq.quant.ptq.settings import Mixed
from dq.quant.ptq.widths import raise_bits_
from dq.quant.recipes.recipe import Recipe
from tests.quant.nets import calibrate, images


class OneBadTensor(nn.Module):
    """The sum has a huge channel that the head does not read, so 8 bits waste nearly all levels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.side = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.head, self.tail = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)
        self.stem.weight.data[0] *= 300
        self.head.weight.data[:, 0] = 0

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        y = self.head(self.stem(x) + self.side(x)).relu()
        return {"out": [self.tail(y), y]}


BAD = "add/out"


@pytest.mark.parametrize(
    ("ratio", "wanted"),
    [(0.01, 20.0), (0.0, math.inf), (math.inf, -math.inf), (math.nan, -math.inf)],
)
def test_a_ratio_that_is_no_number_is_infinite_noise(ratio: float, wanted: float) -> None:
    assert decibel(ratio) == pytest.approx(wanted)


def test_a_quantizer_whose_outputs_are_no_numbers_is_the_most_sensitive() -> None:
    graph = ready()
    names = [site.name for site in graph.sites]
    noises = dict.fromkeys(names, 0.1) | {names[2]: math.nan, names[1]: 0.0}
    found = ranked(graph, noises)
    assert (found[0].name, found[-1].name) == (names[2], names[1])


def ready(**changes: object) -> QuantizedGraph:
    graph = prepare(OneBadTensor().eval(), Recipe(**changes))  # type: ignore[arg-type]
    calibrate(graph, images())
    return graph


def test_the_most_sensitive_quantizer_comes_first_and_each_is_measured_alone() -> None:
    graph = ready()
    found = sensitivities(graph, images(1))
    assert len(found) == len(graph.sites)
    worst = {s.name for s in found[:2]}
    assert worst == {BAD, "stem/out"}
    assert found[2].sqnr > found[0].sqnr + 15
    assert [s.sqnr for s in found] == sorted(s.sqnr for s in found)


def test_single_noises_add_up_to_the_noise_of_all_quantizers() -> None:
    graph = ready()
    few = images(1)
    alone = sum(10 ** (-s.sqnr / 10) for s in sensitivities(graph, few))
    assert abs(-10 * math.log10(alone) - output_sqnr(graph, few)) < 1.5


def test_no_more_are_raised_than_the_target_needs() -> None:
    few = images(1)
    graph = ready()
    raised = choose_raised_(graph, few, sensitivities(graph, few), Mixed(target_sqnr=30.0))
    assert set(raised) == {BAD, "stem/out"}
    assert output_sqnr(graph, few) > 30
    assert quantizer_of(graph, BAD).spec.bits == 16
    graph = ready()
    assert choose_raised_(graph, few, sensitivities(graph, few), Mixed(target_sqnr=-10)) == ()
    assert len(choose_raised_(graph, few, sensitivities(graph, few), Mixed(max_raised=1))) == 1


@pytest.mark.parametrize("observer", ["min_max", "mse"])
def test_a_graph_prepared_with_the_raised_names_quantizes_the_same(observer: str) -> None:
    graph = ready(observer=observer)
    names = (BAD, "head")
    raise_bits_(graph, names)
    again = prepare(OneBadTensor().eval(), Recipe(observer=observer, raised=names))
    calibrate(again, images())
    again.quantizers.load_state_dict(graph.quantizers.state_dict())
    x = images(1)[0]
    for a, b in zip(floating_tensors(graph(x)), floating_tensors(again(x)), strict=True):
        assert torch.equal(a, b)


def test_analysis_returns_plain_values() -> None:
    graph = ready()
    result = analyze(graph, images(1), sensitivities(graph, images(1)), Mixed(max_raised=2))
    assert result["quantizers"][0].keys() == {"name", "kind", "bits", "sqnr"}
    assert len(result["raised"]) == 2
    assert result["sqnr_raised"] > result["sqnr"] + 10
