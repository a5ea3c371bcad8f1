"""Small detectors of mmdet's families with random weights, and batches to train them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv import Config
from mmdet.core.mask import BitmapMasks
from mmdet.models import build_detector
from torch import Tensor, nn

from dq.detector.survey.families import representatives
from dq.detector.survey.tiny_config import remove_pretrained, tiny_config

_NARROW = {"roi_feat_size": 3, "output_size": 3, "fc_out_channels": 16, "feat_channels": 16}
_NARROW |= {"conv_out_channels": 32, "num_convs": 1, "mask_size": 6}


def small_configs(families: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Return a config of each family with a narrow ResNet and narrow heads, by the family."""
    found = {}
    for family, path in representatives(families).items():
        config = tiny(path, folder)
        config.model.backbone.update(base_channels=8, stem_channels=8)
        config.model.neck.in_channels = [8, 16, 32, 64]
        _narrow(config.model)
        found[family] = config
    return found


def tiny(path: Path, folder: Path) -> Any:
    """Return the tiny version of a config of mmdet, without weights to load."""
    file = folder / "small.py"
    file.write_text(tiny_config(path, folder))
    config = Config.fromfile(str(file))
    remove_pretrained(config.model)
    return config


def _narrow(section: Any) -> None:
    for value in section.values() if isinstance(section, dict) else section:
        if isinstance(value, dict | list):
            _narrow(value)
    if isinstance(section, dict):
        section.update({k: v for k, v in _NARROW.items() if k in section})


def initialised(config: Any) -> nn.Module:
    """Return the detector as its own initialisation makes it, in evaluation mode."""
    detector: Any = _as_built(config)
    detector.init_weights()
    detector.eval()  # A detector that distills has its own train(), which returns None.
    assert isinstance(detector, nn.Module)
    return detector


def _as_built(config: Any) -> nn.Module:
    torch.manual_seed(0)
    detector = build_detector(
        copy.deepcopy(config.model),
        train_cfg=config.get("train_cfg"),
        test_cfg=config.get("test_cfg"),
    )
    assert isinstance(detector, nn.Module)
    return detector


def built(config: Any) -> nn.Module:
    """Return the detector in evaluation mode, always with the same random weights."""
    detector = _as_built(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            # Random initial weights of heads are too small to say anything.
            if parameter.dim() > 1 and not name.startswith("backbone"):
                size = parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 * size)
    return detector.eval()


def images(seed: int = 0, number: int = 1, side: int = 64) -> list[Tensor]:
    """Return batches of two random images each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, side, side, generator=generator) for _ in range(number)]


def labelled(side: int = 64) -> dict[str, Any]:
    """Return a batch for ``forward_train``: two images with two boxes and masks each."""
    boxes = torch.tensor([[4.0, 4.0, 28.0, 28.0], [20.0, 24.0, 60.0, 56.0]]) * (side / 64)
    masks = np.zeros((2, side, side), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    shape = (side, side, 3)
    meta = {
        "img_shape": shape, "pad_shape": shape, "ori_shape": shape, "batch_input_shape": shape[:2],
        "scale_factor": np.ones(4, np.float32), "flip": False,
    }  # fmt: skip
    return {
        "img": images(3, side=side)[0],
        "img_metas": [dict(meta) for _ in range(2)],
        "gt_bboxes": [boxes.clone() for _ in range(2)],
        "gt_labels": [torch.tensor([0, 1]) for _ in range(2)],
        "gt_masks": [BitmapMasks(masks.copy(), side, side) for _ in range(2)],
    }
