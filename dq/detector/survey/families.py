"""The families of mmdet's configs, and one config of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mmdet

from dq.names import did_you_mean

# Folders without their own model: parts of configs, and variants of data sets.
NO_FAMILY = ("_base_", "common")
# Families in which `_size` does not choose the smallest or simplest model.
CHOSEN = {
    "dcn": "mask_rcnn_r50_fpn_dconv_c3-c5_1x_coco.py",
    "dcnv2": "faster_rcnn_r50_fpn_mdconv_c3-c5_1x_coco.py",
    "detectors": "cascade_rcnn_r50_rfp_1x_coco.py",
    "fcos": "fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_1x_coco.py",
    "hrnet": "faster_rcnn_hrnetv2p_w18_1x_coco.py",
    "pvt": "retinanet_pvt-t_fpn_1x_coco.py",
    "res2net": "faster_rcnn_r2_101_fpn_2x_coco.py",
    "ssd": "ssdlite_mobilenetv2_scratch_600e_coco.py",
    "yolo": "yolov3_mobilenetv2_320_300e_coco.py",
    "yolox": "yolox_tiny_8x8_300e_coco.py",
}
# Parts of the names of configs, the smallest models first.
_SIZES = (
    "nano",
    "tiny",
    "r18",
    "mobilenet",
    "swin-t",
    "_b0",
    "hrnetv2p_w18",
    "400MF",
    "r50",
    "s50",
)


def configs_folder() -> Path:
    """Return the folder of the configs in mmdet's wheel."""
    return Path(mmdet.__file__).parent / ".mim" / "configs"


def representatives(families: Sequence[str] = ()) -> dict[str, Path]:
    """Return one config of each family, by the family's name.

    Args:
        families: Names of families; all if empty.

    Raises:
        ValueError: There is no such family.
    """
    found = {}
    for folder in sorted(p for p in configs_folder().iterdir() if p.is_dir()):
        files = sorted(folder.glob("*.py"))
        if folder.name not in NO_FAMILY and files:
            named = folder / CHOSEN.get(folder.name, "")
            found[folder.name] = named if named.is_file() else min(files, key=_size)
    for name in families:
        if name not in found:
            raise ValueError(
                f"there is no family {name!r} in {configs_folder()}{did_you_mean(name, found)}"
            )
    return {name: path for name, path in found.items() if not families or name in families}


def _size(path: Path) -> tuple[int, int, str]:
    rank = next((i for i, size in enumerate(_SIZES) if size in path.stem), len(_SIZES))
    return rank, len(path.stem), path.stem
