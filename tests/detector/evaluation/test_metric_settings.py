"""Keys and metrics of the ``evaluation`` section: known ones pass, others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import pytest
from mmdet.datasets import DATASETS, CocoDataset, CustomDataset

from dq.detector.config.read import finish, read_config
from dq.detector.evaluation.metric_settings import arguments_of, check_metric_settings
from tests.detector.coco_set import config_of

ROOT = Path(__file__).resolve().parents[3]
OWN = sorted((ROOT / "configs").glob("[!_]*/*.py"))
# One config of mmdet for each data set and kind of result.
MMDETS = (
    "mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py",
    "rpn/rpn_r50_fpn_1x_coco.py",
    "mask2former/mask2former_r50_lsj_8x2_50e_coco-panoptic.py",
    "panoptic_fpn/panoptic_fpn_r50_fpn_1x_coco.py",
    "lvis/mask_rcnn_r50_fpn_sample1e-3_mstrain_1x_lvis_v1.py",
    "cityscapes/mask_rcnn_r50_fpn_1x_cityscapes.py",
    "openimages/retinanet_r50_fpn_32x2_1x_openimages.py",
    "pascal_voc/faster_rcnn_r50_fpn_1x_voc0712.py",
    "wider_face/ssd300_wider_face.py",
    "deepfashion/mask_rcnn_r50_fpn_15e_deepfashion.py",
    "objects365/retinanet_r50_fpn_1x_obj365v1.py",
    "yolox/yolox_s_8x8_300e_coco.py",
)


@DATASETS.register_module(force=True)
class TakesAnything(CustomDataset):  # type: ignore[misc]
    """Has its own metric."""

    def evaluate(self, results: Any, logger: Any = None, **kwargs: Any) -> Any:
        """Return how many settings there are."""
        return {"settings": len(kwargs)}


@DATASETS.register_module(force=True)
class TakesOne(CocoDataset):  # type: ignore[misc]
    """Has its own metric, with one setting."""

    def evaluate(self, results: Any, logger: Any = None, depth: int = 1) -> Any:
        """Return it."""
        return {"depth": depth}


@DATASETS.register_module(force=True)
class HasNone:
    """Has no metric."""


def check(kind: str, **settings: Any) -> None:
    sections = {"type": kind}
    check_metric_settings(config_of(sections, sections, evaluation=settings))


@pytest.mark.parametrize("path", OWN, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_our_configs_pass(path: Path) -> None:
    check_metric_settings(finish(read_config(path)))


@pytest.mark.parametrize("name", MMDETS)
def test_configs_of_mmdet_pass(name: str) -> None:
    path = Path(mmdet.__file__).parent / ".mim/configs" / name
    check_metric_settings(finish(read_config(path)))


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("CocoDataset", {"clasewise": True}, "evaluation.clasewise is not.*did you mean classwise"),
        ("CocoDataset", {"metric": "mAP"}, "metric 'mAP' does not exist for CocoDataset"),
        ("CocoDataset", {"metric": 50}, "metric '50' does not exist for CocoDataset"),
        ("CocoDataset", {"metric": ["bbox", "seg"]}, "did you mean segm"),
        ("CocoDataset", {"metric_items": ["mAP50"]}, "did you mean mAP_50"),
        ("CocoDataset", {"proposal_nums": (1, 10)}, r"three numbers, one of them 100"),
        ("CocoDataset", {"proposal_nums": (1, 10, 50)}, r"three numbers, one of them 100"),
        ("LVISDataset", {"metric_items": ["mAP"]}, "not a setting of LVIS"),
        ("VOCDataset", {"classwise": True}, "not a setting of VOCDataset"),
        ("VOCDataset", {"metric": "bbox"}, "metric 'bbox' does not exist for VOCDataset"),
        ("VOCDataset", {"metric": ["mAP", "recall"]}, "one metric at a time"),
        ("WIDERFaceDataset", {"metric": "map"}, "known are.*mAP"),
        ("OpenImagesDataset", {"metric": "bbox"}, "does not exist for OpenImagesDataset"),
        ("VOCFolderDataset", {"metric": "map"}, "known are.*mAP"),
        ("CocoPanopticDataset", {"metric": "PQQ"}, "did you mean PQ"),
        ("TakesOne", {"metric": "bbox"}, "evaluation.metric is not a setting of TakesOne"),
        ("HasNone", {}, "HasNone has no evaluate"),
    ],
)
def test_unknown_keys_and_metrics_are_named(kind: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(kind, **settings)


def test_known_keys_and_metrics_pass() -> None:
    check("CocoDataset", metric=["bbox", "segm"], classwise=True, metric_items="mAP", interval=2)
    check("CocoDataset", metric=("bbox",), proposal_nums=[1, 10, 100], iou_thrs=[0.5])
    check("CityscapesDataset", metric=["cityscapes", "segm"], outfile_prefix="x")
    check("OccludedSeparatedCocoDataset", metric="segm", score_thr=0.3, classwise=True)
    check("CocoPanopticDataset", metric=["pq", "segm"], nproc=1, metric_items=["mAP"])
    check("VOCFolderDataset", metric=["mAP", "bbox"], iou_thr=0.5)
    check("TakesAnything", metric="anything", whatever=3)
    check("TakesOne", depth=3, save_best="depth", rule="less", gpu_collect=True, tmpdir="x")


def test_all_sections_are_checked() -> None:
    known, other = {"type": "VOCDataset"}, {"type": "CocoDataset"}
    wrapped = {"type": "ConcatDataset", "datasets": [known, [other]]}
    with pytest.raises(ValueError, match="CocoDataset"):
        check_metric_settings(config_of(known, wrapped, evaluation={"metric": "mAP"}))
    with pytest.raises(ValueError, match="CocoDataset"):
        check_metric_settings(config_of(known, [known, other], evaluation={"iou_thr": 0.5}))


def test_values_are_converted_for_the_metrics() -> None:
    given = {"metric": ("bbox", "segm"), "iou_thrs": [0.5], "proposal_nums": 100, "interval": 3}
    found = arguments_of({**given, "iou_thr": (0.5, 0.7), "gpu_collect": True, "start": 2})
    assert found["metric"] == ["bbox", "segm"]
    assert isinstance(found["iou_thrs"], np.ndarray)
    assert found["proposal_nums"] == (100,)
    assert found["iou_thr"] == [0.5, 0.7]
    assert set(found) == {"metric", "iou_thrs", "proposal_nums", "iou_thr"}
    assert arguments_of({"iou_thrs": 0.5})["iou_thrs"].tolist() == [0.5]
