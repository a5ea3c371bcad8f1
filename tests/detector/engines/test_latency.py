"""The speed at the end of an export: measured, or the reason why not, and nothing for float."""

from __future__ import annotations

from pathlib import Path

import onnx

from dq.detector.engines.latency import measured
from dq.quant.latency.comparison import Latency
from dq.quant.latency.float_twin import float_twin
from tests.quant.latency.models import int8_model


def test_what_is_measured_is_kept(tmp_path: Path) -> None:
    kept: list[Latency] = []
    onnx.save(int8_model(), tmp_path / "it.onnx")
    found = measured(tmp_path / "it.onnx", "onnxruntime", kept.append)
    assert kept == [found]
    assert kept[0].num_layers == 6
    assert kept[0].threads == 1


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
