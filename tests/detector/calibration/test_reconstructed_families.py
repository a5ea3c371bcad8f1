"""Block reconstruction of detectors that are built in other ways than a pyramid with one head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dq.detector.calibration.calibrate import calibration_of
from dq.detector.model.graph import quantize_detector
from dq.detector.survey.families import representatives
from dq.quant.numerics.nested import floating_tensors
from dq.quant.ptq.settings import Repair
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset
from tests.detector.small_families import images, initialised, tiny

pytestmark = [pytest.mark.cpu, pytest.mark.slow]

# Mosaics and SiLU, keypoints, transformers, searched necks, attention, several branches.
FAMILIES = (
    *("yolox", "centernet", "detr", "deformable_detr", "mask2former", "pvt", "nas_fpn"),
    *("dyhead", "hrnet", "efficientnet"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_reconstructed(tmp_path: Path, family: str) -> None:
    detector = initialised(tiny(representatives([family])[family], tmp_path))
    graph = quantize_detector(detector, preset("w4a4"))
    repair = Repair(steps=("channel_scales", "reconstruct"), reconstruction_steps=1, images=2)
    calibration = calibration_of(
        detector, graph, torch.device("cpu"), weight_range="mse", repair=repair
    )
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    calibration.find_ranges_(images(side=128))
    calibration.finish_()
    assert any(not torch.equal(before[key], value) for key, value in detector.state_dict().items())
    set_phase(graph.quantizers, Phase.FROZEN)
    with torch.no_grad():
        found: list[Any] = list(floating_tensors(graph(images(1, side=128)[0])))
    assert all(value.isfinite().all() for value in found)
