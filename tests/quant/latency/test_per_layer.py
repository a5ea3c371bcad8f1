"""Times of layers, and the rule that keeps some of them in float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from dq.engines import ENGINES
from dq.quant.latency import advice as advising
from dq.quant.latency.advice import Advice, advice, not_worthwhile, rules_text
from dq.quant.latency.engine import Executed
from dq.quant.latency.engines import timed_engine
from dq.quant.latency.float_twin import float_twin
from dq.quant.latency.layers import with_layer_numbers
from dq.quant.latency.onnx_runtime import OnnxRuntime
from dq.quant.latency.paired import Spread
from dq.quant.latency.per_layer import LayerTime, costly, layer_times
from dq.quant.latency.terms import Terms
from dq.quant.latency.text import advice_lines, layer_table, slower_line
from dq.quant.recipes.recipe import Recipe, Rule
from tests.quant.latency.models import int8_model, model_of

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("name", ENGINES)
def test_every_module_is_timed_over_all_its_calls(name: str) -> None:
    times = layer_times(int8_model(), timed_engine(name), Terms(rounds=3))
    assert [t.module for t in times] == ["stem", "depthwise", "shared", "up", "last"]
    assert [t.calls for t in times] == [1, 1, 2, 1, 1]
    assert times[2].num_integer == 2
    for time in times:
        assert time.is_quantized
        assert time.ms_integer > 0
        assert time.ms_float > 0
        assert sum(time.operators.values()) == pytest.approx(time.ms_integer)
    assert len(layer_table(times)) == 6


def layer(name: str, ms_integer: float, ms_float: float, **more: Any) -> LayerTime:
    settings = {"calls": 1, "is_quantized": True, "num_integer": 1, "module": name, **more}
    return LayerTime(
        name=name, ms_integer=ms_integer, ms_float=ms_float,
        operators={"Op": ms_integer, "Sigmoid": ms_integer / 2}, **settings,
    )  # fmt: skip


TIMES = [
    layer("fast", 1.0, 3.0),
    layer("a/conv+a/bn", 2.0, 1.0),
    layer("even", 1.0, 1.019),
    layer("worthwhile", 1.0, 1.021),
    layer("plain", 2.0, 1.0, is_quantized=False, num_integer=0),
    layer("worst", 9.0, 1.0),
]


def test_layers_where_integers_bring_less_are_found() -> None:
    assert [t.name for t in not_worthwhile(TIMES)] == ["a/conv+a/bn", "even", "worst"]
    assert [t.name for t in costly(TIMES, 2)] == ["worst", "a/conv+a/bn"]


def test_lines() -> None:
    assert slower_line("m.onnx", TIMES) == (
        "m.onnx is slower than in float; these layers cost most: worst (+8.00 ms, Op 9.00 ms),"
        " a/conv (+1.00 ms, Op 2.00 ms), plain (+1.00 ms, Op 2.00 ms)"
    )


def advised(ratio: float) -> Advice:
    few = tuple(not_worthwhile(TIMES))
    as_now = Spread(low=ratio - 0.25, median=ratio, high=ratio + 0.25)
    return Advice(layers=few, as_now=as_now, num_integer=3, num_layers=6)


def test_a_rule_is_advised_only_if_it_makes_the_model_faster() -> None:
    assert advice_lines("m.onnx", None) == [
        "m.onnx: every layer is at least 1.02x as fast in integers"
    ]
    first, second, rule = advice_lines("m.onnx", advised(1.5))
    assert first == (
        "m.onnx: 3 layers are less than 1.02x as fast in integers; with these in float the model is"
        " 1.50 (1.25 to 1.75) times as fast as now, with 3 of 6 layers in integers"
    )
    assert second == "calibrate with"
    assert rule.startswith("quant = dict(")
    # It is not faster in three of four rounds.
    lines = advice_lines("m.onnx", advised(1.125))
    assert lines[1] == "  a/conv  0.50x  +1.000 ms"
    assert lines[-1] == "so keep them in integers"


def test_the_rule_is_measured_on_the_file() -> None:
    model = int8_model()
    assert advice(model, [layer("stem+norm", 1.0, 3.0)], OnnxRuntime()) is None
    slow = [layer("stem+norm", 2.0, 1.0), layer("depthwise", 1.0, 3.0)]
    found = advice(model, slow, OnnxRuntime(), Terms(rounds=3))
    assert found is not None
    assert [t.name for t in found.layers] == ["stem+norm"]
    assert found.num_integer < OnnxRuntime().open(model, threads=1).num_integer
    assert found.num_layers == 6
    assert found.as_now.low > 0


def test_all_layers_are_counted_if_none_is_left_in_integers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(advising, "with_layers_in_float", lambda model, names: float_twin(model))
    found = advice(int8_model(), [layer("stem+norm", 2.0, 1.0)], OnnxRuntime(), Terms(rounds=3))
    assert found is not None
    assert (found.num_integer, found.num_layers) == (0, 6)


def test_the_rule_leaves_these_layers_in_float() -> None:
    _, layers = with_layer_numbers(int8_model())
    slow = [
        layer(one.name, 2.0, 1.0, module=one.module)
        for one in layers
        if one.module in ("stem", "last")
    ]
    found: dict[str, Any] = {}
    exec(rules_text(slow), found)
    model = model_of(Recipe(rules=tuple(Rule(**rule) for rule in found["quant"]["rules"])))
    _, layers = with_layer_numbers(model)
    assert [one.is_quantized for one in layers] == [False, True, True, True, True, False]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Says which layers it computes together, first in the quantized model, then in the float one.

    An executed operator takes a millisecond for each of its layers.
    """

    joins: list[list[set[int]]]

    def profiled(self, model: object, *, threads: int) -> Engine:
        return self

    def compute(self, arrays: object) -> None:
        """Compute nothing."""

    def executed(self) -> list[Executed]:
        return [
            Executed(
                operator="Op",
                names=" ".join(f"@layer{number}@own@" for number in numbers),
                after=(),
                ms=float(len(numbers)),
                is_integer=True,
            )
            for numbers in self.joins.pop(0)
        ]


@pytest.mark.parametrize("swap", [False, True])
def test_the_time_of_layers_computed_together_is_that_of_the_last(swap: bool) -> None:
    """One model joins 4 with 5 and the other 1 with 4, so only all three can be compared."""
    joins = [[{0}, {1}, {2}, {3}, {4, 5}], [{0}, {1, 4}, {2}, {3}, {5}]]
    engine: Any = Engine(joins=joins[::-1] if swap else joins)
    times = {t.module: t for t in layer_times(int8_model(), engine, Terms(rounds=1))}
    found = {name: (t.ms_integer, t.ms_float) for name, t in times.items()}
    apart = {"stem": (1, 1), "depthwise": (0, 0), "shared": (2, 2), "up": (0, 0)}
    assert found == {**apart, "last": (3, 3)}
