"""Exported networks of many detector families load in ONNX Runtime and agree, layer by layer."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dq.detector.calibration.calibrate import calibrate
from dq.detector.export.write import ExportFormat, export_detector, part_path
from dq.detector.model.graph import quantize_detector
from dq.engines import engine_named
from dq.quant.export.onnx_graph import flatten
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.engine.graph import exact_network
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset
from dq.quant.verify.cut_model import CutNetwork
from dq.quant.verify.engine import Network
from dq.quant.verify.layer_differences import called_once, layer_differences
from dq.quant.verify.onnxruntime_session import ENGINE, OnnxNetwork
from tests.detector.model.test_graph import detector_of

pytestmark = pytest.mark.slow

SHALLOW = {"model.bbox_head.stacked_convs": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "faster_rcnn": {},
    "fcos": SHALLOW,
    "foveabox": SHALLOW,
    "gfl": SHALLOW,
    "retinanet": SHALLOW,
    "yolo": {},  # YOLOv3 with MobileNetV2
    "yolof": {"model.neck.in_channels": 512},
    "yolox": {},
}
# Families in which ONNX Runtime computes all layers in integers without rules of its own.
IN_INTEGERS = {"faster_rcnn", "foveabox", "retinanet", "yolof"}
# Families that need its rules for that: functions other than ReLU, or group norms.
BY_RULES = ("fcos", "gfl", "yolo", "yolox")
RECIPES = [(family, "int8") for family in FAMILIES] + [(f, "onnxruntime") for f in BY_RULES]
SIZE = (64, 64)
# On other CPUs it adds tensors with other instructions.
ON_X86 = platform.machine() in ("x86_64", "AMD64")

# Each layer reads the fake-quantized network's own input, so errors do not grow with depth. float32
# sums in another order differ by less than this (in scales) beyond a tie,
LITERAL_EXCESS = 1e-3
# and at most this share of the values is at a tie; the most seen was 3e-5, on a processor with AMX.
LITERAL_SHARE = 5e-5
# Integer engines also quantize biases, to the product of two scales.
INTEGER_EXCESS, INTEGER_SHARE = 0.05, 1e-3


def settle_norms_(detector: nn.Module, images: Tensor) -> None:
    """Set batch norms to the statistics of these images, so that no activation vanishes."""
    norms = [m for m in detector.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.momentum = None  # The average over all passes, here a single one.
        norm.reset_running_stats()
        norm.train()
    features = detector.extract_feat(images)  # type: ignore[operator]
    head = getattr(detector, "bbox_head", None) or detector.rpn_head
    head(features)  # type: ignore[operator]
    detector.eval()


def assert_agrees(graph: QuantizedGraph, model: onnx.ModelProto, images: list[Tensor]) -> None:
    """Compare every fake quantization, every output and every quantized weight of the graph."""
    cut = CutNetwork(model, called_once(graph), ENGINE.open)
    assert cut.network.num_integer == OnnxNetwork(model).num_integer > 0
    for integers in (False, True):
        found = layer_differences(graph, model, images, integers=integers)
        own = {s.name for s in graph.sites if s.kind == "activation"}
        assert own <= {d.site for d in found}
        weights = {s.name for s in graph.sites if s.kind != "activation"}
        assert {layer for d in found for layer in d.layers} == weights
        excess, share = (
            (INTEGER_EXCESS, INTEGER_SHARE) if integers else (LITERAL_EXCESS, LITERAL_SHARE)
        )
        assert not [d for d in found if not d.excess < excess]
        # At a tie, a value may differ by one integer.
        assert not [d for d in found if not d.largest < 1.001]
        num = sum(d.num for d in found)
        assert sum(d.share * d.num for d in found) <= max(1, share * num)
    assert_agrees_in_openvino(graph, model, images)


def assert_agrees_in_openvino(
    graph: QuantizedGraph, model: onnx.ModelProto, images: list[Tensor]
) -> None:
    """Compare every fake quantization and every output: all in integers, with float biases."""
    engine = engine_named("openvino")
    whole, opened = engine.open(model), []

    def recorded(*given: Any) -> Network:
        opened.append(engine.network(*given))
        return opened[-1]

    # It compiles a network in seconds, so the cut one is opened once.
    found = layer_differences(graph, model, images, engine=replace(engine, network=recorded))
    (cut,) = opened
    assert whole.num_float == cut.num_float == 0
    assert whole.num_integer == cut.num_integer > 0
    if whole.exact:
        assert not [d for d in found if not d.excess < LITERAL_EXCESS]
        assert not [d for d in found if not d.largest < 1.001]
        num = sum(d.num for d in found)
        assert sum(d.share * d.num for d in found) <= max(1, LITERAL_SHARE * num)


def assert_equal_bits(graph: QuantizedGraph, model: onnx.ModelProto, images: Tensor) -> None:
    """Integer arithmetic in torch equals ONNX Runtime if that runs in integers."""
    network, exact = OnnxNetwork(model), exact_network(graph)
    assert exact is not graph
    found = flatten(exact(images))[0]
    for one, other in zip(found, network.tensors(images), strict=True):
        assert torch.isfinite(one).all()
        if network.num_float == 0 and ON_X86:
            assert torch.equal(one, other), f"{(one != other).sum()} of {one.numel()}"


@pytest.mark.parametrize(("family", "target"), RECIPES)
@torch.no_grad()
def test_family_loads_and_agrees(family: str, target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = detector_of(family, **FAMILIES[family])
    batch = torch.randn(4, 3, *SIZE)
    settle_norms_(detector, batch)
    graph = quantize_detector(detector, preset(target))
    images = list(batch.split(1))
    calibrate(detector, graph, images, torch.device("cpu"))
    set_phase(graph.quantizers, Phase.FROZEN)
    paths = export_detector(
        detector,
        graph,
        tmp_path,
        name="net",
        form=ExportFormat(kind="onnx-qdq", size=SIZE),
        metadata={},
    )
    assert paths[-1].suffix == ".json"
    model = onnx.load(paths[0])
    assert_agrees(graph, model, [batch[:2]])
    in_integers = target == "onnxruntime" or family in IN_INTEGERS
    assert (OnnxNetwork(model).num_float == 0) == in_integers
    assert_equal_bits(graph, model, batch[:2])
    for part, own in graph.parts.items():
        boxes = torch.randn(3, 256, 7, 7).relu()
        part_model = onnx.load(part_path(paths[0], part))
        assert_agrees(own, part_model, [boxes])
        assert_equal_bits(own, part_model, boxes)
    assert bool(graph.parts) == (family == "faster_rcnn")
