"""The detector of a config with a checkpoint's float weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from dq.detector.data.datasets import test_classes
from dq.detector.model.build import build_model, float_state, load_float_state
from launcher.plan import Plan
from launcher.session import Session


def float_detector(
    plan: Plan, place: Session, content: Mapping[str, Any], source: object
) -> nn.Module:
    """Return the detector on this rank's device.

    Args:
        plan: Has the config.
        place: Has the device.
        content: Of a checkpoint, float or quantized.
        source: Its name, for messages.

    Raises:
        ValueError: The checkpoint is another model's.
    """
    detector = build_model(plan.config, test_classes(plan.config), initialise=False)
    load_float_state(detector, float_state(content, str(source)), str(source))
    return detector.to(place.device)
