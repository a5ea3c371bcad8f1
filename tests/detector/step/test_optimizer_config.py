"""Values of ``fp16`` that are no section are refused by name."""

from __future__ import annotations

import pytest
import torch
from mmcv import Config

from dq.detector.step.optimizer_config import optimizer_step
from dq.detector.step.supervision import Supervision


def test_fp16_is_a_section() -> None:
    config = Config({"optimizer_config": {}, "fp16": True})
    with pytest.raises(ValueError, match=r"fp16 is True; use dict\(loss_scale='dynamic'\)"):
        optimizer_step(config, Supervision(), torch.device("cpu"))


def test_fp16_may_be_off() -> None:
    config = Config({"optimizer_config": {}, "fp16": False})
    step = optimizer_step(config, Supervision(), torch.device("cpu"))
    assert step is not None
    assert step.scaler is None
