"""The speed at the end of an export: measured, or the reason why not, and nothing for float."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from dq.detector.engines.latency import measured
from dq.engines import backend_of, is_installed
from dq.quant.latency.float_twin import float_twin
from dq.quant.latency.result import Latency
from dq.quant.targets.registry import TARGETS
from tests.quant.latency.models import int8_model


def test_what_is_measured_is_kept(tmp_path: Path) -> None:
    kept: list[Latency] = []
    onnx.save(int8_model(), tmp_path / "it.onnx")
    found = measured(tmp_path / "it.onnx", "onnxruntime", kept.append)
    assert kept == [found]
    assert kept[0].num_layers == 6
    assert kept[0].threads == 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_is_measured_in_the_engine_that_it_is_for(target: str, tmp_path: Path) -> None:
    model = int8_model()
    onnx.helper.set_model_props(model, {"recipe": json.dumps({"target": target})})
    onnx.save(model, tmp_path / "it.onnx")
    found = measured(tmp_path / "it.onnx", None, lambda latency: None)
    assert isinstance(found, Latency)
    here = target == "openvino" and is_installed("openvino")
    assert backend_of(found.engine) == ("openvino" if here else "onnxruntime")


def test_a_model_that_does_not_say_what_it_is_for_is_measured_in_onnx_runtime(
    tmp_path: Path,
) -> None:
    onnx.save(int8_model(), tmp_path / "it.onnx")
    found = measured(tmp_path / "it.onnx", None, lambda latency: None)
    assert isinstance(found, Latency)
    assert found.engine.startswith("ONNX Runtime")


def test_a_float_model_and_one_that_cannot_run_are_not_measured(tmp_path: Path) -> None:
    kept: list[Latency] = []
    onnx.save(float_twin(int8_model()), tmp_path / "float.onnx")
    assert measured(tmp_path / "float.onnx", "onnxruntime", kept.append) is None
    model = int8_model()
    model.opset_import.append(onnx.helper.make_opsetid("of.nobody", 1))
    model.graph.node[0].domain, model.graph.node[0].op_type = "of.nobody", "Unheard"
    onnx.save(model, tmp_path / "other.onnx")
    reason = measured(tmp_path / "other.onnx", "onnxruntime", kept.append)
    assert isinstance(reason, str)
    assert "ONNX Runtime cannot run it" in reason
    assert kept == []
