"""Models are compared with their float twins, in an engine with known times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import onnx
import pytest

from dq.quant.latency import paired
from dq.quant.latency.comparison import compare, latency_of
from dq.quant.latency.float_twin import float_twin
from dq.quant.latency.formats import is_quantized
from dq.quant.latency.onnx_runtime import OnnxRuntime
from dq.quant.latency.result import Latency
from dq.quant.latency.terms import Terms
from tests.quant.latency.models import int8_model

pytestmark = pytest.mark.cpu


class Engine:
    """Computes nothing, but takes a given time in float and another one in integers."""

    def __init__(self, ms_float: float, ms_integer: float) -> None:
        self.ms_float, self.ms_integer = ms_float, ms_integer
        self.now = 0.0
        self.order: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def open(self, model: onnx.ModelProto, *, threads: int) -> Network:
        assert threads == 2
        return Network(self, is_integer=is_quantized(model))

    def profiled(self, model: onnx.ModelProto, *, threads: int) -> Any:
        raise NotImplementedError

    def __str__(self) -> str:
        return "Engine 1.0"


class Network:
    def __init__(self, engine: Engine, *, is_integer: bool) -> None:
        self.engine, self.is_integer = engine, is_integer
        self.num_integer, self.num_float = (5, 1) if is_integer else (0, 6)

    def compute(self, arrays: Sequence[Any]) -> list[Any]:
        assert arrays[0].shape == (3, 3, 16, 16)
        self.engine.order.append("integer" if self.is_integer else "float")
        ms = self.engine.ms_integer if self.is_integer else self.engine.ms_float
        self.engine.now += ms / 1000
        return []


TERMS = Terms(threads=2, rounds=6, batch=3)


def latency(monkeypatch: pytest.MonkeyPatch, ms_float: float, ms_integer: float) -> Latency:
    engine = Engine(ms_float, ms_integer)
    monkeypatch.setattr(paired, "time", engine)
    found = latency_of(int8_model(), engine, TERMS)
    assert found is not None
    return found


def test_says_how_many_times_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    found = latency(monkeypatch, 512.0, 256.0)
    assert asdict(found.times_as_fast) == pytest.approx({"low": 2.0, "median": 2.0, "high": 2.0})
    assert (found.threads, found.rounds, found.widths) == (2, 6, "int8")
    assert not found.is_slower
    assert found.bytes_integer == int8_model().ByteSize()
    assert found.bytes_float == float_twin(int8_model()).ByteSize()
    assert found.sentence() == (
        "int8 2.00 times as fast as float: 256.0 ms against 512.0 ms, 2 threads, 5 of 6 layers in"
        " integers (Engine 1.0)"
    )


def test_says_that_integers_are_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    found = latency(monkeypatch, 128.0, 256.0)
    assert found.is_slower
    assert found.sentence().startswith(
        "int8 is SLOWER than float, 0.50 times as fast: 256.0 ms against 128.0 ms, 2 threads"
    )


def test_models_run_in_turn_each_beside_its_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(512.0, 256.0)
    monkeypatch.setattr(paired, "time", engine)
    models = {"one": int8_model(), "plain": float_twin(int8_model()), "two": int8_model()}
    found = compare(models, engine, TERMS)
    round_ = ["integer", "float", "float", "integer", "float"]
    own = engine.order[-6 * len(round_) :]
    assert own == (round_ + round_[::-1]) * 3
    assert found["plain"].latency is None
    assert found["plain"].as_first.median == pytest.approx(0.5)
    assert found["two"].as_first.median == pytest.approx(1.0)
    assert found["two"].latency is not None
    assert [own.rounds for own in found.values()] == [6, 6, 6]


def test_a_float_model_has_nothing_to_compare_with() -> None:
    assert latency_of(float_twin(int8_model()), Engine(1.0, 1.0)) is None


def test_a_model_that_cannot_be_timed_is_named() -> None:
    wrong = int8_model()
    wrong.graph.node[0].op_type = "Unheard"
    with pytest.raises(ValueError, match=r"^it\.onnx: ONNX Runtime cannot run it"):
        compare({"it.onnx": wrong}, OnnxRuntime())


def test_a_real_engine_gives_a_spread() -> None:
    found = latency_of(int8_model(), OnnxRuntime(), Terms(rounds=5, limit_s=0.0))
    assert found is not None
    assert 0 < found.times_as_fast.low <= found.times_as_fast.median <= found.times_as_fast.high
    assert (found.num_layers, found.rounds) == (6, 5)
