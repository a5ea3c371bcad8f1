"""Operators without a direct ONNX form, and heads with two inputs, in ONNX Runtime and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from torch import Tensor, nn

from dq.detector.calibration.calibrate import calibrate
from dq.detector.engines.onnx_detector import OnnxGraph
from dq.detector.export.write import ExportFormat, export_detector, part_path
from dq.detector.model.graph import quantize_detector
from dq.detector.model.operators.ensure import ensure_operators
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.engine.graph import exact_network
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from dq.quant.verify.onnxruntime_session import OnnxNetwork, load_model
from tests.detector.model.test_graph import detector_of

pytestmark = pytest.mark.slow
SIZE = (32, 48)


class Deformed(nn.Module):
    """A backbone of three layers, the middle one deformable."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 8, 3), middle, nn.Conv2d(8, 4, 1)

    def extract_feat(self, img: Tensor) -> Any:
        return self.last(self.middle(self.first(img)).relu())


def images(seed: int) -> Tensor:
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def exported(detector: nn.Module, folder: Path, opset: int | None = None) -> QuantizedGraph:
    graph = quantize_detector(detector.eval(), Recipe())
    calibrate(detector, graph, [images(1)], torch.device("cpu"))
    set_phase(graph.quantizers, Phase.FROZEN)
    form = ExportFormat(kind="onnx-qdq", size=SIZE, opset=opset)
    export_detector(detector, graph, folder, name="net", form=form, metadata={})
    return graph


@pytest.mark.parametrize("kind", [DeformConv2dPack, ModulatedDeformConv2dPack])
@pytest.mark.parametrize("groups", [1, 2])
def test_deformable_convolution(tmp_path: Path, kind: type[nn.Module], groups: int) -> None:
    ensure_operators()
    torch.manual_seed(0)
    middle: Any = kind(8, 8, 3, stride=2, padding=1, groups=groups, deform_groups=groups)
    nn.init.normal_(middle.conv_offset.weight, std=0.3)  # Kernel taps move by whole pixels.
    detector = Deformed(middle)
    graph = exported(detector, tmp_path)
    model = load_model(tmp_path / "net.onnx")
    assert any(node.op_type == "DeformConv" for node in model.graph.node)
    network = OnnxNetwork(model)
    with torch.no_grad():
        (wanted,) = exact_network(graph)(images(2)).values()
    (got,) = network.tensors(images(2))
    scale = float((wanted.unique().diff()).min())
    assert wanted.unique().numel() > 20
    # Sums of the float layer may be on the other side of a tie, which differs by one step.
    assert float((got - wanted).abs().max()) <= 1.01 * scale
    assert float((got != wanted).float().mean()) < 0.01
    with pytest.raises(ValueError, match="needs 19 or later"):
        exported(Deformed(kind(8, 8, 3)), tmp_path, opset=18)


def test_roi_head_of_two_inputs(tmp_path: Path) -> None:
    detector = detector_of("double_heads")
    part = "roi_head.bbox_head"
    graph = exported(detector, tmp_path)
    network = OnnxNetwork(load_model(part_path(tmp_path / "net.onnx", part)))
    torch.manual_seed(0)
    boxes = torch.rand(5, 256, 7, 7), torch.rand(5, 256, 7, 7)
    found = OnnxGraph(network, graph.parts[part], *boxes)(*boxes)
    with torch.no_grad():
        wanted = exact_network(graph.parts[part])(*boxes)
    for got, own in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, own, atol=1e-4, rtol=1e-4)


def test_head_without_a_branch(tmp_path: Path) -> None:
    """Grid R-CNN's box head has no regression branch and returns None for it."""
    detector = detector_of("grid_rcnn")
    part = "roi_head.bbox_head"
    graph = exported(detector, tmp_path)
    network = OnnxNetwork(load_model(part_path(tmp_path / "net.onnx", part)))
    boxes = torch.rand(5, 256, 7, 7, generator=torch.Generator().manual_seed(0))
    scores, moves = OnnxGraph(network, graph.parts[part], boxes)(boxes)
    with torch.no_grad():
        wanted, _ = exact_network(graph.parts[part])(boxes)
    assert moves is None
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-4)
