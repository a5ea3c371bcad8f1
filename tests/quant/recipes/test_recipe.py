"""Recipes: rules by name, type and position; presets; unknown names are refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph, quantizer_of
from dq.quant.numerics.spec import QuantSpec
from dq.quant.recipes.recipe import INT8_WEIGHT, OBSERVERS, Recipe, Rule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(8, 2, 1)
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.body(x)
        y = self.head(torch.cat([y, y], 1))
        return self.fc(y.mean((2, 3)))


def bits(graph: QuantizedGraph) -> dict[str, int]:
    return {site.name: quantizer_of(graph, site.name).spec.bits for site in graph.sites}


def test_first_and_last_are_the_ends_of_the_network_with_input_and_output() -> None:
    rules = (Rule(position="first", bits=16), Rule(position="last", bits=12))
    found = bits(prepare(Net(), Recipe(rules=rules)))
    high = {name for name, width in found.items() if width == 16}
    last = {name for name, width in found.items() if width == 12}
    assert high == {"x/out", "stem"}
    assert last == {"fc", "fc/out"}
    assert {width for name, width in found.items() if name not in high | last} == {8}


def test_rules_by_type_match_layers_and_functions_and_the_last_one_wins() -> None:
    rules = (
        Rule(type="Conv2d", bits=6),
        Rule(type="cat", bits=5),
        Rule(module="head", quantize=False),
        Rule(type="Linear", weight=replace(INT8_WEIGHT, bits=3)),
    )
    found = bits(prepare(Net(), Recipe(rules=rules)))
    assert found["stem"] == found["body/0+body/1"] == 6
    assert not any(name.startswith("head") for name in found)
    assert found["fc"] == 3
    assert found["fc/out"] == 8


def test_raised_quantizers_have_16_bits_whatever_the_rules_say() -> None:
    names = tuple(bits(prepare(Net(), Recipe())))
    chosen = ("stem", names[-1])
    recipe = Recipe(rules=(Rule(module="*", bits=4),), raised=chosen)
    found = bits(prepare(Net(), recipe))
    assert {name for name, width in found.items() if width == 16} == set(chosen)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(module="bdy.0"), "module 'bdy.0' is not in the model; did you mean body.0?"),
        (Rule(type="Conv2D"), "type 'Conv2D' is not in the model; did you mean Conv2d?"),
    ],
)
def test_a_rule_that_matches_nothing_is_refused(rule: Rule, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        prepare(Net(), Recipe(rules=(rule,)))


def test_unknown_names_are_refused_with_the_closest_name() -> None:
    with pytest.raises(ValueError, match="did you mean percentile"):
        Recipe(observer="percentil")
    with pytest.raises(ValueError, match="did you mean mse"):
        Recipe(weight_range="mae")
    with pytest.raises(ValueError, match="did you mean first"):
        Rule(position="frist")


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_observer_works_in_an_activation_quantizer(name: str) -> None:
    spec = QuantSpec(bits=5)
    quantizer = Recipe(observer=name, momentum=0.25).activation_quantizer(spec)
    assert type(quantizer.observer) is OBSERVERS[name]
    assert set(quantizer.observer.state_dict()) == {"range_min", "range_max"}
    assert getattr(quantizer.observer, "spec", spec) == spec
    assert getattr(quantizer.observer, "momentum", 0.25) == 0.25
