"""Depthwise layers of mmdet's detectors, and what they read, by their rules."""

from __future__ import annotations

import pytest
import torch
from mmcv import Config
from mmdet.models import build_detector
from torch import fx, nn

from dq.detector.model.graph import quantize_detector
from dq.detector.survey.families import configs_folder
from dq.detector.survey.tiny_config import remove_pretrained
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.layers import QuantizedLayer
from dq.quant.recipes.recipe import Recipe, Rule

torch.set_num_threads(1)
# One config of each of mmdet's networks with such layers; the one of PVTv2 stays in float.
NAMES = [
    "efficientnet/retinanet_effb3_fpn_crop896_8x4_1x_coco.py",
    "ssd/ssdlite_mobilenetv2_scratch_600e_coco.py",
    "yolo/yolov3_mobilenetv2_mstrain-416_300e_coco.py",
    "yolox/yolox_nano_8x8_300e_coco.py",
]


def quantized(name: str) -> QuantizedGraph:
    """Return the detector with 4 bits, but 8 in depthwise layers and 7 in what they read."""
    config = Config.fromfile(str(configs_folder() / name))
    remove_pretrained(config.model)
    detector = build_detector(config.model)
    rules = (
        Rule(position="depthwise_input", activation=QuantSpec(bits=7)),
        Rule(position="depthwise", bits=8),
    )
    weight = QuantSpec(bits=4, symmetric=True, channel_axis=0)
    recipe = Recipe(weight=weight, activation=QuantSpec(bits=4), rules=rules)
    return quantize_detector(detector, recipe)


def quantizer_before(graph: QuantizedGraph, node: fx.Node) -> ActivationQuantizer | None:
    """Return the quantizer that the node's values come from, or None if they are in float."""
    while node.op != "placeholder":
        module = graph.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, ActivationQuantizer):
            return module
        if isinstance(module, QuantizedLayer):
            return None
        node = node.all_input_nodes[0]
    return None


@pytest.mark.parametrize("name", NAMES)
def test_depthwise_layers_and_their_inputs_are_found_in_each_network(name: str) -> None:
    graph = quantized(name)
    found: list[str] = []
    for site, quantized_layer, layer, _ in graph.all_layers():
        groups = getattr(layer, "groups", 1)
        is_depthwise = isinstance(layer, nn.Conv2d) and groups == layer.in_channels > 1
        assert quantized_layer.weight.spec.bits == (8 if is_depthwise else 4), site.name
        if is_depthwise:
            found.append(site.module)
    assert len(found) > 5
    for node in graph.graph.nodes:
        layer = node.args[1] if len(node.args) > 1 else None
        if not isinstance(layer, fx.Node) or str(layer.target) not in found:
            continue
        read = quantizer_before(graph, node.args[0])
        # 8 bits where a depthwise layer reads another one's output.
        assert read is None or read.spec.bits in (7, 8), node
