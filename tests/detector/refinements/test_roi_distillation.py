"""RoI heads learn from the teacher's on the same boxes; those that cannot are named."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dq.detector.model.autocast import run_under_autocast
from dq.detector.model.graph import attach, quantize_detector
from dq.detector.refinements.extras import added_losses
from dq.detector.refinements.refinery import Refinery
from dq.detector.refinements.roi_distillation import RoIDistillation
from dq.detector.survey.families import representatives
from dq.quant.numerics.nested import floating_tensors
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from dq.quant.training.distillation import Distill
from dq.quant.training.refinements import Refinements
from dq.quant.training.schedule import Schedule
from tests.detector.small_families import built, initialised, labelled, small_configs, tiny

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
def configs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    return small_configs(FAMILIES, tmp_path_factory.mktemp("configs"))


def distilled(config: Any, **settings: Any) -> tuple[Any, RoIDistillation]:
    """Return a detector with random weights and its distillation; see `taught`."""
    return taught(built(config), **settings)


def taught(detector: nn.Module, **settings: Any) -> tuple[Any, RoIDistillation]:
    """Return a detector in training mode, without rounding, and the distillation that it runs."""
    graph = quantize_detector(detector, Recipe())
    distillation = RoIDistillation(detector, graph, Distill(**settings))
    attach(detector, distillation)
    set_phase(detector, Phase.OFF)
    detector.train()
    for module in detector.modules():
        # The teacher's norms never use the statistics of a batch, and it drops nothing.
        if isinstance(module, _BatchNorm) or type(module).__name__.startswith("Drop"):
            module.eval()
    return detector, distillation


def losses_of(detector: Any, distillation: RoIDistillation, side: int = 64) -> dict[str, Tensor]:
    """Return the losses of a step, and leave its gradients in the detector."""
    torch.manual_seed(0)  # Of the samplers.
    with distillation.watching(), added_losses(detector, [distillation.losses]):
        losses = dict(detector.forward_train(**labelled(side)))
    detector.zero_grad()
    if losses["loss_distill_roi"].requires_grad:  # Not if no head has a teacher.
        losses["loss_distill_roi"].backward()
    return losses


@torch.no_grad()
def disturb(module: nn.Module, share: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(share * parameter.std() * noise)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_differs_from_the_teachers_is_an_error_with_a_gradient(
    configs: Mapping[str, Any], family: str
) -> None:
    detector, distillation = distilled(configs[family])
    for name, head in distillation.heads.items():
        assert losses_of(detector, distillation)["loss_distill_roi"] == 0
        before = copy.deepcopy(head.state_dict())
        disturb(head)
        assert losses_of(detector, distillation)["loss_distill_roi"] > 0, name
        assert sum(p.grad.abs().sum() for p in head.parameters() if p.grad is not None) > 0
        head.load_state_dict(before)


def test_weight_scales_the_error_of_the_heads(configs: Mapping[str, Any]) -> None:
    found = []
    for weight in (1.0, 3.0):
        detector, distillation = distilled(configs["faster_rcnn"], weight=weight)
        disturb(detector.roi_head)
        found.append(losses_of(detector, distillation)["loss_distill_roi"].item())
    assert found[1] == pytest.approx(3 * found[0], rel=1e-5)


def test_teacher_and_student_judge_the_same_boxes(configs: Mapping[str, Any]) -> None:
    """Other proposals of the student alone are no error of its heads."""
    detector, distillation = distilled(configs["mask_rcnn"])
    disturb(detector.rpn_head)
    losses = losses_of(detector, distillation)
    assert losses["loss_distill"] > 0
    assert losses["loss_distill_roi"] == 0


def test_features_that_differ_reach_the_heads_and_get_a_gradient(
    configs: Mapping[str, Any],
) -> None:
    detector, distillation = distilled(configs["faster_rcnn"])
    disturb(detector.neck)
    assert losses_of(detector, distillation)["loss_distill_roi"] > 0
    assert detector.neck.lateral_convs[0].conv.weight.grad.abs().sum() > 0


def test_a_step_without_objects_is_finite(
    configs: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask head gets no box then, and every rank must have the same loss terms."""
    detector, distillation = distilled(configs["mask_rcnn"])
    disturb(detector.roi_head)
    batch = labelled()
    batch["gt_bboxes"] = [boxes[:0] for boxes in batch["gt_bboxes"]]
    batch["gt_labels"] = [labels[:0] for labels in batch["gt_labels"]]
    batch["gt_masks"] = [masks[np.zeros(0, int)] for masks in batch["gt_masks"]]
    with distillation.watching(), added_losses(detector, [distillation.losses]):
        found = detector.forward_train(**batch)["loss_distill_roi"]
        assert found.isfinite()
        assert found > 0
        # No head at all is called.
        monkeypatch.setattr(detector.roi_head, "forward_train", lambda *_, **__: {})
        assert detector.forward_train(**batch)["loss_distill_roi"] == 0


def test_only_training_is_recorded_and_only_in_the_body(configs: Mapping[str, Any]) -> None:
    detector, distillation = distilled(configs["faster_rcnn"])
    batch = labelled()
    with distillation.watching(), torch.no_grad():
        detector.eval()
        detector.simple_test(batch["img"], batch["img_metas"])
        assert not distillation.calls
    assert not any(module._forward_hooks for module in detector.modules())


def test_a_head_without_a_teacher_is_named_once(
    configs: Mapping[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    detector, distillation = distilled(configs["mask_rcnn"])
    del distillation.extractors["roi_head.mask_roi_extractor"]
    disturb(detector.roi_head.mask_head)
    with caplog.at_level(logging.INFO):
        assert losses_of(detector, distillation)["loss_distill_roi"] == 0
        losses_of(detector, distillation)
    assert [record.getMessage() for record in caplog.records if record.name == "dq.train"] == [
        "roi_head.mask_head has no teacher: its inputs are not those of a RoI extractor"
    ]


def test_heads_learn_in_half_precision_too(configs: Mapping[str, Any]) -> None:
    """Autocast gives the heads copies of the features in float32."""
    detector, distillation = distilled(configs["faster_rcnn"])
    run_under_autocast(detector, distillation, torch.device("cpu"))
    assert 0 < losses_of(detector, distillation)["loss_distill_roi"] < 0.1


@pytest.mark.parametrize("alone", [False, True])
def test_a_training_has_this_teacher_unless_it_has_no_labels(
    configs: Mapping[str, Any], alone: bool
) -> None:
    detector = built(configs["faster_rcnn"])
    graph = quantize_detector(detector, Recipe())
    settings = Refinements(distill=Distill(alone=alone))
    refinery = Refinery(detector, graph, Schedule(), settings)
    assert isinstance(refinery.network, RoIDistillation) is not alone
    assert len(refinery.watching) == (not alone)
    attach(detector, refinery.network)
    detector.train()
    set_phase(detector, Phase.OFF)
    with refinery.losses():
        losses = detector.forward_train(**labelled())
    assert ("loss_distill_roi" in losses) is not alone


def heads_with_boxes(distillation: RoIDistillation) -> set[str]:
    """Return a set that gets the name of each head that a box reaches from now on."""
    reached: set[str] = set()
    repeat = distillation._repeat

    def watched(call: Any, taught: Any) -> Any:
        if call.name in distillation.heads and any(
            tensor.numel() for tensor in floating_tensors(call.output)
        ):
            reached.add(call.name)
        return repeat(call, taught)

    distillation._repeat = watched  # type: ignore[method-assign]
    return reached


@pytest.mark.slow
def test_heads_of_every_family_learn_or_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without = {}
    for family, path in representatives().items():
        if family in LEFT_OUT:
            continue
        config = tiny(path, tmp_path)
        if "roi_head" not in config.model:
            continue
        detector, distillation = taught(initialised(config))
        caplog.clear()
        with caplog.at_level(logging.INFO, "dq.train"):
            assert losses_of(detector, distillation, side=128)["loss_distill_roi"] < 1e-6, family
        messages = [r.getMessage() for r in caplog.records if "has no teacher" in r.getMessage()]
        named = {message.split()[0] for message in messages}
        if named:
            without[family] = named
        disturb(detector.roi_head)
        learning = set(distillation.heads) - named
        reached = heads_with_boxes(distillation)
        error = losses_of(detector, distillation, side=128)["loss_distill_roi"].item()
        assert (error > 0) is bool(learning & reached), family
        assert reached or family == "tridentnet", family  # Its samplers may choose no box at all.
    assert without == {"groie": {"roi_head.bbox_head", "roi_head.mask_head"}}
