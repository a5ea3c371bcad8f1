"""A detector on its quantized graph: quantized and float parts, mmdet's methods unchanged."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from mmcv import Config
from mmdet.models import build_detector
from torch import Tensor, nn

from dq.detector.calibration.calibrate import calibrate
from dq.detector.model.graph import (
    FEATURES,
    Features,
    parameters_outside,
    quantize_detector,
    summary,
    trace_detector,
)
from dq.detector.survey.families import representatives
from dq.detector.survey.tiny_config import remove_pretrained
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe, Rule

torch.set_num_threads(1)
IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def detector_of(family: str, **options: Any) -> nn.Module:
    """Return a family's detector with a small backbone."""
    config = Config.fromfile(str(representatives([family])[family]))
    remove_pretrained(config.model)
    if config.model.get("backbone", {}).get("type") == "ResNet":
        config.model.backbone.update(depth=18, norm_eval=False, frozen_stages=-1)
        config.model.backbone.pop("style", None)
        if "in_channels" in config.model.get("neck", {}):
            config.model.neck.in_channels = [64, 128, 256, 512]
    config.merge_from_dict(options)
    detector = build_detector(
        config.model, train_cfg=config.get("train_cfg"), test_cfg=config.get("test_cfg")
    )
    assert isinstance(detector, nn.Module)
    return detector


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in flat(item)]


def test_single_stage_detector_is_one_graph() -> None:
    detector = detector_of("retinanet").eval()
    with torch.no_grad():
        expected = flat(detector.bbox_head(detector.extract_feat(IMAGE)))  # type: ignore[operator]
    keys = list(detector.state_dict())
    graph = quantize_detector(detector, Recipe())
    assert graph.left_float == {}
    assert graph.training_graph is None
    with torch.no_grad():
        got = flat(graph(IMAGE))
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)
    assert [k for k in detector.state_dict() if not k.startswith("quantizers.")] == keys
    heads = [s for s in graph.sites if s.module.startswith("bbox_head.cls_convs.0.activate")]
    assert [s.call for s in heads] == [0, 1, 2, 3, 4]


def test_boxes_are_scaled_only_in_evaluation() -> None:
    """FCOS multiplies its boxes by the stride in evaluation; training must not do so."""
    detector = detector_of("fcos")
    head: Any = detector.bbox_head
    wanted = {}
    for training in (False, True):
        detector.eval()  # One set of batch statistics.
        head.training = training
        with torch.no_grad():
            wanted[training] = flat(head(detector.extract_feat(IMAGE)))  # type: ignore[operator]
    graph = quantize_detector(detector, Recipe())
    for training in (False, True):
        detector.eval()
        detector.training = training
        with torch.no_grad():
            got = flat(graph(IMAGE))
        for a, b in zip(wanted[training], got, strict=True):
            torch.testing.assert_close(a, b)


def test_two_stage_detector_has_graphs_for_its_heads() -> None:
    detector = detector_of("faster_rcnn")
    graph = quantize_detector(detector, Recipe())
    assert list(graph.parts) == ["roi_head.bbox_head"]
    assert graph.left_float == {}
    weights = {s.module for s in graph.parts["roi_head.bbox_head"].sites if s.kind == "weight"}
    assert weights == {
        f"roi_head.bbox_head.{n}" for n in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg")
    }
    calibrate(detector, graph, [IMAGE], torch.device("cpu"))
    set_phase(graph.quantizers, Phase.FROZEN)
    meta = {
        "img_shape": (64, 64, 3),
        "ori_shape": (64, 64, 3),
        "scale_factor": torch.ones(4).numpy(),
        "flip": False,
    }
    with torch.no_grad():
        features = detector.eval().extract_feat(IMAGE)  # type: ignore[operator]
        result = detector(return_loss=False, img=[IMAGE], img_metas=[[meta]])
    assert isinstance(features, Features)
    assert set(features.outputs) == {"rpn_head"}
    assert len(result[0]) == 80


def test_rule_keeps_roi_heads_float() -> None:
    recipe = Recipe(rules=(Rule(module="roi_head.*", quantize=False),))
    graph = quantize_detector(detector_of("faster_rcnn"), recipe)
    assert not [name for name in graph.quantizers if name.startswith("roi_head")]


def test_head_with_queries_stays_float_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    detector = detector_of("detr", **{"model.bbox_head.in_channels": 512})
    with caplog.at_level(logging.WARNING):
        graph = quantize_detector(detector, Recipe())
    assert set(graph.left_float) == {"bbox_head"}
    assert "left in float: bbox_head" in caplog.text
    assert set(graph(IMAGE)) == {FEATURES}


def test_untraceable_backbone_is_refused_in_one_line() -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def extract_feat(self, img: Tensor) -> Tensor:
            y: Tensor = self.conv(img)
            return y if y.sum() > 0 else -y

    with pytest.raises(ValueError, match="cannot be quantized: Deciding has no static graph"):
        trace_detector(Deciding())


def test_unused_parameters_are_named() -> None:
    levels = {"start_level": 0, "end_level": 2, "num_outs": 3}
    detector = detector_of("retinanet", **{f"model.neck.{k}": v for k, v in levels.items()})
    unused = parameters_outside(detector, trace_detector(detector))
    assert "backbone.layer4.0.conv1.weight" in unused
    assert all(name.startswith("backbone.layer4") for name in unused)


def test_summary_groups_modules_by_reason() -> None:
    assert list(summary({"a": "x", "b": "x", "c": "y"})) == [("a and 1 more", "x"), ("c", "y")]
    many = {str(i): str(i) for i in range(9)}
    assert list(summary(many, most=2))[-1] == ("...", "and 7 other reasons")


@pytest.mark.parametrize(
    ("family", "patterns"),
    [
        ("fcos", {r"bbox_head/(cls|reg)_convs/3/activate(#\d)?/out"}),
        ("yolox", {r"bbox_head/multi_level_(cls|reg)_convs/\d/1/activate/out"}),
        ("ssd", {r"bbox_head/(cls|reg)_convs/\d/0/activate/out"}),
        ("yolo", {r"bbox_head/convs_bridge/\d/activate/out"}),
        # The RoI head is a graph of its own, with last layers of its own.
        ("faster_rcnn", {r"rpn_head/relu(#\d)?/out", r"roi_head/bbox_head/relu#1/out"}),
    ],
)
def test_inputs_of_last_layers_are_those_of_the_heads_outputs(
    family: str, patterns: set[str]
) -> None:
    eight = Rule(position="last_input", activation=QuantSpec(bits=8))
    graph = quantize_detector(
        detector_of(family), Recipe(activation=QuantSpec(bits=4), rules=(eight,))
    )
    wide = {name for name, own in graph.activations().items() if own.spec.bits == 8}
    assert {p for p in patterns for name in wide if re.fullmatch(p, name)} == patterns
    assert not [name for name in wide if not any(re.fullmatch(p, name) for p in patterns)]
