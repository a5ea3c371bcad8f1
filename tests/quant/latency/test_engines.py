"""Every engine runs models, counts their layers and times their operators."""

from __future__ import annotations

import numpy as np
import pytest

from dq.engines import ENGINES
from dq.quant.latency.engines import timed_engine
from dq.quant.latency.float_twin import float_twin
from dq.quant.latency.layers import by_layer, with_layer_numbers
from dq.quant.latency.terms import example_inputs
from dq.quant.verify.onnxruntime_session import OnnxNetwork
from tests.quant.latency.models import images, int8_model

pytestmark = [pytest.mark.cpu, pytest.mark.parametrize("name", ENGINES)]


def test_runs_both_and_counts_layers_in_integers(name: str) -> None:
    engine = timed_engine(name)
    model = int8_model()
    network, plain = (engine.open(m, threads=1) for m in (model, float_twin(model)))
    assert network.num_integer >= 3
    assert plain.num_integer == 0
    assert network.num_integer + network.num_float == plain.num_float == 6
    batch = images(5, 1)
    wanted = OnnxNetwork(model).tensors(batch)
    for found, other in zip(network.compute([batch.numpy()]), wanted, strict=True):
        # Some of 255 values may be rounded the other way.
        np.testing.assert_allclose(found, other, atol=0.05 * float(other.abs().max()))


def test_runs_batches_of_another_size_if_it_is_free(name: str) -> None:
    model = int8_model()
    network = timed_engine(name).open(model, threads=1)
    for num in (3, 1):
        batch = images(5, num)
        wanted = OnnxNetwork(model).tensors(batch)
        for found, other in zip(network.compute([batch.numpy()]), wanted, strict=True):
            np.testing.assert_allclose(found, other, atol=0.05 * float(other.abs().max()))


def test_times_every_layer(name: str) -> None:
    engine = timed_engine(name)
    numbered, layers = with_layer_numbers(int8_model())
    network = engine.profiled(numbered, threads=1)
    for _ in range(3):
        network.compute(example_inputs(numbered))
    found = by_layer(network.executed())
    assert set(found) == set(range(len(layers)))
    for operators in found.values():
        assert sum(operator.ms for operator in operators) > 0
    integer = sum(o.is_integer for operators in found.values() for o in operators)
    assert integer == network.num_integer


def test_a_model_that_it_cannot_run_is_one_line(name: str) -> None:
    model = int8_model()
    model.graph.node[0].op_type = "Unheard"
    with pytest.raises(
        ValueError, match=r"^(ONNX Runtime|OpenVINO) cannot run it: .*Unheard"
    ) as it:
        timed_engine(name).open(model, threads=1)
    assert "\n" not in str(it.value)


def test_names_its_version(name: str) -> None:
    assert any(c.isdigit() for c in str(timed_engine(name)))
