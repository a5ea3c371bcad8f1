"""RoI heads learn from the teacher's on the same boxes; those that cannot are named."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv import Config
from torch import Tensor, nn

from dq.detector.model.graph import attach, quantize_detector
from dq.detector.refinements.extras import added_losses
from dq.detector.refinements.roi_distillation import RoIDistillation
from dq.detector.survey.families import representatives
from dq.quant.numerics.nested import floating_tensors
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import INT8_WEIGHT, Recipe
from dq.quant.training.distillation import Distill
from tests.detector.small_families import built, labelled, small_configs, tiny

pytestmark = pytest.mark.cpu

# One head, heads for boxes and masks, a cascade, a head with two inputs.
FAMILIES = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "double_heads")
# Families that need annotations or proposals of another kind, or have no quantized RoI head.
LEFT_OUT = {
    "carafe": "its neck has no CPU implementation",
    "convnext": "its backbone is in mmcls",
    "timm_example": "its backbone is in timm",
    "fast_rcnn": "needs proposals from a file",
    "libra_rcnn": "needs proposals from a file",
    "htc": "needs semantic maps",
    "panoptic_fpn": "needs semantic maps",
    "queryinst": "its RoI head is float",
    "scnet": "its RoI head is float",
    "sparse_rcnn": "its RoI head is float",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    return small_configs(FAMILIES, tmp_path_factory.mktemp("configs"))


def distilled(config: Any, **settings: Any) -> RoIDistillation:
    """Return the distillation of a detector in training mode that runs on it."""
    detector = built(config)
    graph = quantize_detector(detector, Recipe(weight=INT8_WEIGHT))
    distillation = RoIDistillation(detector, graph, Distill(**settings))
    attach(detector, distillation)
    detector.train()
    return distillation


def stepped(distillation: RoIDistillation, side: int = 64) -> dict[str, Any]:
    """Run ``forward_train`` and return its losses."""
    detector: Any = distillation.heads_owner
    with distillation.watching(), added_losses(detector, [distillation.losses]):
        return dict(detector.forward_train(**labelled(side)))
