"""A model that does not belong to the detector is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dq.detector.engines.onnx_detector import OnnxGraph
from tests.quant.verify.test_engine import network_with


def test_a_model_with_another_number_of_inputs_is_refused() -> None:
    def graph(x: Any) -> Any:
        return x

    examples = [torch.ones(1, 3, 4, 4)] * 2
    with pytest.raises(ValueError, match=r"inputs \(x, y\) are not this detector's; export it"):
        OnnxGraph(network_with(["x", "y"]), graph, *examples)
