"""The timed detectors, at their real input sizes, with random weights."""

from __future__ import annotations

from pathlib import Path

import mmdet
import torch
from mmcv import Config
from mmdet.models import build_detector
from mmdet.utils import compat_cfg, replace_cfg_vals
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dq.detector.survey.tiny_config import remove_pretrained

_OURS = Path(__file__).resolve().parents[2] / "configs"
_MMDET = Path(mmdet.__file__).parent / ".mim" / "configs"
# Config, height and width.
NETS: dict[str, tuple[Path, tuple[int, int]]] = {
    "ssd_mobilenet": (_OURS / "ssd/ssd_mobilenet_fpn.py", (512, 512)),
    "ssd_resnet": (_OURS / "ssd/ssd_resnet_fpn.py", (512, 512)),
    "retinanet_r18": (_MMDET / "retinanet/retinanet_r18_fpn_1x_coco.py", (800, 1344)),
    "retinanet_r50": (_MMDET / "retinanet/retinanet_r50_fpn_1x_coco.py", (800, 1344)),
    "fcos_r50": (_MMDET / "fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py", (800, 1344)),
    "yolox_nano": (_MMDET / "yolox/yolox_nano_8x8_300e_coco.py", (416, 416)),
    "yolox_tiny": (_MMDET / "yolox/yolox_tiny_8x8_300e_coco.py", (416, 416)),
    "yolox_s": (_MMDET / "yolox/yolox_s_8x8_300e_coco.py", (640, 640)),
    "yolov3_mobilenet": (_MMDET / "yolo/yolov3_mobilenetv2_mstrain-416_300e_coco.py", (416, 416)),
}
NUM_IMAGES = 2


def images_of(size: tuple[int, int]) -> Tensor:
    """Return the images for norms and calibration, ``(NUM_IMAGES, 3, *size)``."""
    return torch.randn(NUM_IMAGES, 3, *size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def build(config: Path, images: Tensor) -> nn.Module:
    """Return a detector whose norms have the statistics of these images, in evaluation mode.

    Its weights are random, but activations neither vanish nor explode, so it takes the same time as
    a trained detector.
    """
    content = compat_cfg(replace_cfg_vals(Config.fromfile(str(config))))
    remove_pretrained(content.model)
    torch.manual_seed(0)
    detector: nn.Module = build_detector(
        content.model, train_cfg=content.get("train_cfg"), test_cfg=content.get("test_cfg")
    ).eval()
    for module in detector.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None  # The average over all passes, here a single one.
            module.reset_running_stats()
            nn.Module.train(module)
    detector.bbox_head(detector.extract_feat(images))
    return detector.eval()
