"""Exported detections equal mmdet's, box by box; heads that cannot be decoded are refused."""

# ruff: noqa: C408 - configs are written as mmdet writes them.

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv import Config
from mmdet.models import BACKBONES, build_detector
from torch import Tensor, nn

from dq.detector.calibration.calibrate import calibrate
from dq.detector.engines.onnx_detector import (
    DETECTIONS,
    load_models,
    open_networks,
    run_in_engine_,
    run_in_torch_,
)
from dq.detector.export.decode_boxes import decoder_of
from dq.detector.export.suppress_boxes import Detections, settings_of
from dq.detector.export.write import ExportFormat, export_detector
from dq.detector.model.graph import quantize_detector
from dq.engines import ENGINES, engine_named
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe, Rule
from dq.quant.verify.engine import Engine
from dq.quant.verify.onnxruntime_session import ENGINE, OnnxNetwork, load_model

pytestmark = pytest.mark.slow

# Eight bits give only 256 different scores, and boxes with equal scores have no fixed order.
RECIPE = Recipe(rules=(Rule(module="bbox_head.*", bits=16),))
SIZE = (64, 96)
CLASSES = ("a", "b", "c", "d")
STRIDES = (8, 16)
DELTA = dict(type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2])
ANCHORS = dict(type="AnchorGenerator", octave_base_scale=4, strides=STRIDES, ratios=[0.5, 1.0])
SQUARES = dict(ANCHORS, ratios=[1.0], scales_per_octave=1, strides=[8])
SSD = dict(
    type="SSDAnchorGenerator", scale_major=False, input_size=96, strides=STRIDES,
    ratios=([2], [2]), min_sizes=[10, 20], max_sizes=[20, 40],
)  # fmt: skip
SHALLOW: dict[str, Any] = dict(stacked_convs=1, feat_channels=8)

# Detector type and head, by family name.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ssd": (
        "SingleStageDetector",
        dict(type="SSDHead", in_channels=(8, 8), anchor_generator=SSD, bbox_coder=DELTA),
    ),
    "retinanet": (
        "RetinaNet",
        dict(
            type="RetinaHead", anchor_generator=dict(ANCHORS, scales_per_octave=2),
            bbox_coder=DELTA, **SHALLOW,
        ),
    ),
    "atss": (
        "ATSS",
        dict(
            type="ATSSHead", norm_cfg=None, anchor_generator=SQUARES, bbox_coder=DELTA, **SHALLOW
        ),
    ),
    "yolof": (
        "YOLOF",
        dict(
            type="YOLOFHead", num_cls_convs=1, num_reg_convs=1,
            anchor_generator=dict(
                type="AnchorGenerator", ratios=[1.0], scales=[1, 2], strides=[16]
            ),
            bbox_coder=dict(
                type="DeltaXYWHBBoxCoder", target_stds=[1.0] * 4, add_ctr_clamp=True, ctr_clamp=4
            ),
        ),
    ),
    "fcos": (
        "FCOS",
        dict(
            type="FCOSHead", strides=STRIDES, regress_ranges=((-1, 32), (32, 1e8)),
            norm_cfg=None, **SHALLOW,
        ),
    ),
    "gfl": (
        "GFL",
        dict(type="GFLHead", norm_cfg=None, anchor_generator=SQUARES, reg_max=4, **SHALLOW),
    ),
    "yolov3": (
        "YOLOV3",
        dict(
            type="YOLOV3Head", in_channels=[8], out_channels=[8], featmap_strides=[8],
            anchor_generator=dict(
                type="YOLOAnchorGenerator", strides=[8], base_sizes=[[(10, 13), (16, 30)]]
            ),
        ),
    ),
    "yolox": ("YOLOX", dict(type="YOLOXHead", strides=STRIDES, **SHALLOW)),
    "foveabox": (
        "FOVEA",
        dict(
            type="FoveaHead", strides=STRIDES, base_edge_list=(16, 32),
            scale_ranges=((1, 32), (32, 64)), **SHALLOW,
        ),
    ),
}  # fmt: skip
# Backbone outputs, if the family's head does not get both.
OUTPUTS = {"atss": (0,), "gfl": (0,), "yolov3": (0,), "yolof": (1,)}
NMS = dict(type="nms", iou_threshold=0.4)
TEST = dict(nms_pre=60, score_thr=0.2, nms=NMS, max_per_img=50)


@BACKBONES.register_module(force=True)
class TinyPyramid(nn.Module):
    """Features at strides 8 and 16, of 8 channels."""

    def __init__(self, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.outputs = outputs
        self.first = nn.Conv2d(3, 8, 8, stride=8)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def init_weights(self) -> None:
        """Keep torch's own initial weights."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = torch.relu(self.first(x))
        levels = (first, torch.relu(self.second(first)))
        return tuple(levels[index] for index in self.outputs)


def built(family: str, **test_cfg: Any) -> nn.Module:
    """Return a detector of the family with weights that give boxes everywhere."""
    torch.manual_seed(0)
    kind, head = FAMILIES[family]
    model = dict(
        type=kind,
        backbone=dict(type="TinyPyramid", outputs=OUTPUTS.get(family, (0, 1))),
        neck=None,
        bbox_head={"in_channels": 8, **head, "num_classes": len(CLASSES)},
        test_cfg={**TEST, **test_cfg},
    )
    detector: nn.Module = build_detector(Config({"model": model}).model)
    with torch.no_grad():
        for name, parameter in detector.bbox_head.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
            elif name.endswith("bias"):
                parameter.zero_()
    return detector.eval()


def images() -> Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def quantized(detector: nn.Module) -> QuantizedGraph:
    graph = quantize_detector(detector, RECIPE)
    calibrate(detector, graph, [images()], torch.device("cpu"))
    set_phase(graph.quantizers, Phase.FROZEN)
    return graph


def exported(detector: nn.Module, graph: QuantizedGraph, folder: Path, decode: str) -> Path:
    metadata = {
        "classes": json.dumps(CLASSES),
        "preprocessing": json.dumps({"size": SIZE}),
        "decode": decode,
    }
    paths = export_detector(
        detector, graph, folder, name="net", metadata=metadata,
        form=ExportFormat(kind="onnx-qdq", size=SIZE, decode=decode),
    )  # fmt: skip
    return paths[0]


def found_by(detector: nn.Module, batch: Tensor) -> list[list[np.ndarray[Any, Any]]]:
    """Return mmdet's results for images that were enlarged by 2 and 1.5."""
    meta = {
        "img_shape": (*SIZE, 3),
        "scale_factor": np.array([2, 1.5, 2, 1.5], np.float32),
        "flip": False,
    }
    metas = [[dict(meta) for _ in batch]]
    with torch.no_grad():
        found: Any = detector(return_loss=False, rescale=True, img=[batch], img_metas=metas)
    return found  # type: ignore[no-any-return]


CASES: dict[str, dict[str, Any]] = {
    "ssd": {},
    "retinanet": {},
    "atss": {"nms": dict(NMS, class_agnostic=True)},
    "yolof": {},
    "fcos": {},
    "gfl": {},
    "yolov3": {"conf_thr": 0.3, "nms_pre": 400},  # mmdet's uses all candidates.
    "yolox": {"max_per_img": -1},  # mmdet's returns all remaining boxes.
}


@pytest.mark.parametrize("family", CASES)
def test_detections_are_mmdets(family: str, tmp_path: Path) -> None:
    detector = built(family, **CASES[family])
    graph = quantized(detector)
    path = exported(detector, graph, tmp_path, "nms")
    assert path.name == "net.nms.onnx"
    models = load_models(path, graph, CLASSES)
    assert {node.domain for node in models[DETECTIONS].graph.node} == {""}
    for name in ENGINES:
        assert_detections_are_mmdets(detector, graph, models, engine_named(name), family)


def assert_detections_are_mmdets(
    detector: nn.Module,
    graph: QuantizedGraph,
    models: dict[str, Any],
    engine: Engine,
    family: str,
) -> None:
    """Compare mmdet's own decoding and NMS with those of the model, on the same integers."""
    batches = [images(), images()[1:]]
    networks = open_networks(models, engine, threads=1)
    run_in_engine_(detector, graph, {key: n for key, n in networks.items() if key != DETECTIONS})
    wanted = [found_by(detector, batch) for batch in batches]
    run_in_engine_(detector, graph, networks)
    network = networks[DETECTIONS]
    got = [found_by(detector, batch) for batch in batches]
    for mine, own in zip([*got[0], *got[1]], [*wanted[0], *wanted[1]], strict=True):
        assert sum(len(boxes) > 0 for boxes in own) > 1
        for a, b in zip(mine, own, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a[:, :4], b[:, :4], rtol=1e-5, atol=1e-3)
            np.testing.assert_allclose(a[:, 4], b[:, 4], rtol=1e-5, atol=1e-6)
    assert network.names == ["boxes", "scores", "labels"]
    boxes, scores, labels = network.tensors(images())
    num = sum(len(rows) for rows in wanted[0][0])
    assert len(labels[0]) == (8 * 12 + 4 * 6 if family == "yolox" else 50)
    assert (labels[0, :num] >= 0).all()
    assert (scores[0].diff() <= 0).all()
    assert (labels[0, num:] == -1).all()
    assert not scores[0, num:].any()
    assert not boxes[0, num:].any()
    # In torch nothing is left of the engine's detections.
    run_in_torch_(detector, graph, networks, exactly=False)
    assert "simple_test" not in detector.__dict__


def test_boxes_of_all_priors_are_mmdets(tmp_path: Path) -> None:
    detector = built("fcos", nms=dict(type="nms", iou_threshold=1.0))
    graph = quantized(detector)
    path = exported(detector, graph, tmp_path, "boxes")
    model = load_model(path)
    assert path.name == "net.boxes.onnx"
    network = OnnxNetwork(model)
    assert network.names == ["boxes", "scores"]
    boxes, scores = network.tensors(images())
    assert boxes.shape == (2, 8 * 12 + 4 * 6, 4)
    assert scores.shape == (2, 8 * 12 + 4 * 6, len(CLASSES))
    models = load_models(path, graph, CLASSES)
    assert set(models) == {""}
    run_in_engine_(detector, graph, open_networks(models, ENGINE, threads=1))
    scale = torch.tensor([2, 1.5, 2, 1.5])
    for own, all_boxes, all_scores in zip(found_by(detector, images()), boxes, scores, strict=True):
        for label, rows in enumerate(own):
            for *corners, score in rows.tolist():
                there = (all_boxes / scale - torch.tensor(corners)).abs().amax(1) < 1e-3
                assert (all_scores[there, label] - score).abs().min() < 1e-5


def refused(detector: nn.Module, match: str) -> None:
    with torch.no_grad():
        outputs = quantize_detector(detector, Recipe())(images())
    with pytest.raises(ValueError, match=match):
        Detections(decoder_of(detector, outputs, SIZE), settings_of(detector.bbox_head))


def test_heads_that_cannot_be_decoded_are_refused_by_name() -> None:
    refused(built("foveabox"), r"FOVEA with FoveaHead cannot be decoded in ONNX; export with")
    soft = dict(type="soft_nms", iou_threshold=0.5)
    refused(built("fcos", nms=soft), r"cannot suppress boxes as .*soft_nms.* set model\.test_cfg")
    refused(built("fcos", nms_pre=-1), r"--decode nms needs model\.test_cfg\.nms_pre")
