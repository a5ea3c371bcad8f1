"""A detector gains only quantizers: its keys, parameters and modules are still mmdet's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dq.detector.calibration.calibrate import calibrate
from dq.detector.engines.exact_torch import exact_arithmetic
from dq.detector.model.graph import quantize_detector, trace_detector
from dq.detector.step.parallel_detector import LoneDetector
from dq.quant.graph.trace import trace
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from tests.detector.model.test_graph import IMAGE, detector_of, flat

# All ways to trace heads: dense heads, one RoI head, stages, two inputs, masks.
FAMILIES: dict[str, dict[str, Any]] = {
    "retinanet": {},
    "detr": {"model.bbox_head.in_channels": 512},
    "faster_rcnn": {},
    "cascade_rcnn": {},
    "mask_rcnn": {},
    "double_heads": {},
    "grid_rcnn": {},
    "rpn": {},
}


def content(detector: nn.Module) -> tuple[list[str], ...]:
    """Return names of keys, parameters and modules, without those in ``quantizers``."""
    found = (detector.state_dict(), dict(detector.named_parameters()))
    modules = [name for name, _ in detector.named_modules(remove_duplicate=False)]
    lists = [list(names) for names in (*found, modules)]
    return tuple([n for n in names if n.partition(".")[0] != "quantizers"] for names in lists)


def features(detector: Any) -> list[Tensor]:
    with torch.no_grad():
        return [x.clone() for x in flat(detector.extract_feat(IMAGE))]


# Heads that are traced in several parts: these take seconds.
LONG = ("cascade_rcnn", "mask_rcnn", "double_heads", "grid_rcnn")


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.slow] if f in LONG else []) for f in FAMILIES],
)
def test_stages_add_quantizers_and_nothing_else(family: str) -> None:
    detector = detector_of(family, **FAMILIES[family]).eval()
    before = content(detector)
    trace_detector(detector)
    assert content(detector) == before, "tracing"
    graph = quantize_detector(detector, Recipe())
    assert content(detector) == before, "preparing"
    calibrate(detector, graph, [IMAGE], torch.device("cpu"))
    assert content(detector) == before, "calibration"
    set_phase(graph.quantizers, Phase.TRAIN)
    assert LoneDetector(detector).module is detector
    detector.train()
    assert content(detector) == before, "training"
    set_phase(graph.quantizers, Phase.FROZEN)
    with exact_arithmetic(detector.eval(), graph):
        assert content(detector) == before, "exact arithmetic"
    assert content(detector) == before, "evaluation"
    assert content(copy.deepcopy(detector)) == before, "a copy"


@pytest.mark.parametrize("family", ["retinanet", "faster_rcnn"])
def test_a_copy_runs_on_its_own_weights(family: str) -> None:
    detector = detector_of(family).eval()
    graph = quantize_detector(detector, Recipe())
    calibrate(detector, graph, [IMAGE], torch.device("cpu"))
    twin = copy.deepcopy(detector)
    expected = features(detector)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.zero_()
    for own, wanted in zip(features(twin), expected, strict=True):
        assert torch.equal(own, wanted)
    assert not any(x.any() for x in features(detector)[:1])
    taken = twin.__dict__["extract_feat"].graph
    assert taken.root is twin
    for name in graph.parts:
        part = twin.get_submodule(name).__dict__["forward"]
        assert part.root is twin
        assert part is taken.parts[name]


def test_a_traced_module_is_not_a_child_of_its_model() -> None:
    root = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1)))
    before = content(root)
    trace(root, root[1], examples=[torch.zeros(1, 4, 8, 8)])
    assert content(root) == before
