"""The detectors whose speed is measured, with random weights and batch norms in training mode."""

from __future__ import annotations

from pathlib import Path

import mmdet
import torch
from mmcv import Config
from mmdet.models import build_detector
from mmdet.utils import compat_cfg, replace_cfg_vals
from torch import nn

from dq.detector.model.operators.ensure import ensure_operators

_OURS = Path(__file__).resolve().parent.parent / "configs"
_MMDET = Path(mmdet.__file__).parent / ".mim" / "configs"
NETS = {
    "ssd_mobilenet": _OURS / "bccd/ssd_mobilenet_fpn_256.py",
    "retinanet_r18": _MMDET / "retinanet/retinanet_r18_fpn_1x_coco.py",
    "retinanet_r50": _MMDET / "retinanet/retinanet_r50_fpn_1x_coco.py",
    "yolox_s": _MMDET / "yolox/yolox_s_8x8_300e_coco.py",
}


def build(name: str, size: int) -> tuple[Config, nn.Module]:
    """Return config and detector; all layers are trained, and norms use batch statistics.

    Args:
        name: One of `NETS`.
        size: Width and height of the images in pixels.
    """
    # mmcv may have no operators for this device.
    ensure_operators()
    config = compat_cfg(replace_cfg_vals(Config.fromfile(str(NETS[name]))))
    _free(config.model, size)
    torch.manual_seed(0)
    return config, build_detector(config.model).train()


def _free(section: dict, size: int) -> None:
    """Remove pretrained weights, frozen stages, frozen norms and random image sizes."""
    for key, value in list(section.items()):
        if key in ("init_cfg", "pretrained"):
            section[key] = None
        elif key == "frozen_stages":
            section[key] = -1
        elif key == "norm_eval":
            section[key] = False
        elif key == "input_size":
            section[key] = (size, size) if isinstance(value, tuple | list) else size
        elif key == "random_size_range":
            section[key] = (size // 32, size // 32)
        elif isinstance(value, dict):
            _free(value, size)
