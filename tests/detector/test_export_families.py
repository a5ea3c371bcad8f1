"""Exported networks of many detector families load in ONNX Runtime and agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from dq.detector.calibrate import calibrate
from dq.detector.export import export_detector, part_path
from dq.detector.graph import quantize_detector
from dq.quant.layer_differences import layer_differences
from dq.quant.onnx_session import OnnxNetwork
from dq.quant.phase import Phase, set_phase
from dq.quant.recipe import Recipe
from tests.detector.test_graph import detector_of

pytestmark = pytest.mark.slow

FAMILIES: dict[str, dict[str, Any]] = {
    "atss": {},
    "faster_rcnn": {},
    "fcos": {},
    "gfl": {},
    "retinanet": {},
    "ssd": {},  # SSDLite with MobileNetV2
    "wider_face": {},  # SSD300 with VGG
    "yolo": {},
    "yolof": {"model.neck.in_channels": 512},
    "yolox": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_family_loads_and_agrees(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    side = 300 if family == "wider_face" else 96
    detector = detector_of(family, **FAMILIES[family])
    for module in detector.modules():
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            module.running_var.uniform_(0.5, 2.0)
    graph = quantize_detector(detector, Recipe())
    images = [torch.randn(1, 3, side, side) for _ in range(2)]
    calibrate(detector, graph, images, torch.device("cpu"))
    set_phase(graph.quantizers, Phase.FROZEN)
    paths = export_detector(
        detector, graph, tmp_path, name="net", kind="onnx-qdq", size=(side, side), opset=None,
        metadata={},
    )  # fmt: skip
    assert paths[-1].suffix == ".json"
    model = onnx.load(paths[0])
    values = {value for node in model.graph.node for value in node.output}
    keep = [name for name in graph.activations() if name in values]
    network = OnnxNetwork(model, keep=keep)
    found = layer_differences(graph, network.run, images[:1])
    assert len(found) > 30
    # Roundings that fall the other way add up over layers, and random weights do not damp them: the
    # first tensors agree closely, the last ones within a few scales.
    assert max(d.mean for d in found[:8]) < 0.05
    assert max(d.mean for d in found) < 4.0
    assert sum(d.mean for d in found) / len(found) < 1.0
    if family == "faster_rcnn":
        head = OnnxNetwork(onnx.load(part_path(paths[0], "roi_head.bbox_head")))
        boxes = torch.randn(3, 256, 7, 7).relu()
        with torch.no_grad():
            wanted = graph.parts["roi_head.bbox_head"](boxes)
        for a, b in zip(head.tensors(boxes), wanted, strict=True):
            assert (a - b).abs().mean() < 0.02 * b.abs().max()
