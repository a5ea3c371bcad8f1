"""Check the config's ``evaluation`` section: the keys and metrics that each data set supports."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from mmcv import Config
from mmdet.datasets import (
    DATASETS,
    CityscapesDataset,
    CocoDataset,
    CocoPanopticDataset,
    CustomDataset,
    LVISDataset,
    OpenImagesDataset,
    VOCDataset,
)

from dq.detector.data.data_section import image_sections
from dq.detector.data.voc_folder import METRICS, VOCFolderDataset
from dq.field_types import check_value
from dq.names import did_you_mean

# Keys about when to evaluate and what to keep; the data set does not get them.
TIMING = (
    "interval",
    "start",
    "by_epoch",
    "save_best",
    "rule",
    "dynamic_intervals",
    "greater_keys",
    "less_keys",
    "out_dir",
    "file_client_args",
)
# Keys about how mmdet collects results and buffers over ranks; they have no effect here.
COLLECTING = ("tmpdir", "gpu_collect", "broadcast_bn_buffer")
COCO_METRICS = ("bbox", "segm", "proposal", "proposal_fast")
# mmdet's names of pycocotools' twelve numbers.
COCO_ITEMS = (
    *("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"),
    *("AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000"),
)
# Metrics by the class whose ``evaluate`` computes them.
_METRICS: Mapping[type[Any], Sequence[str]] = {
    CustomDataset: ("mAP", "recall"),
    VOCDataset: ("mAP", "recall"),
    VOCFolderDataset: METRICS,
    OpenImagesDataset: ("mAP",),
    CocoDataset: COCO_METRICS,
    LVISDataset: COCO_METRICS,
    CityscapesDataset: ("cityscapes", *COCO_METRICS),
    CocoPanopticDataset: ("PQ", "pq", "bbox", "segm", "proposal"),
}


def check_metric_settings(config: Config) -> None:
    """Refuse ``evaluation`` settings that ``data.val`` or ``data.test`` does not support.

    Raises:
        ValueError: A key or a metric does not exist, or a value does not fit; the nearest name is
            suggested.
    """
    settings = config.get("evaluation") or {}
    for split in ("val", "test"):
        for section in image_sections(config, split):
            kind = DATASETS.get(section["type"])
            if kind is not None:
                _check(kind, settings)


def arguments_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments in an ``evaluation`` section for the data set's ``evaluate``.

    Values are converted to the types that mmdet's metrics need: tuples of names to lists, IoU
    thresholds of COCO's metric to an array.
    """
    found = {k: v for k, v in settings.items() if k not in (*TIMING, *COLLECTING)}
    for key in ("metric", "metric_items", "iou_thr", "ioa_thr"):
        if isinstance(found.get(key), tuple):
            found[key] = list(found[key])
    if found.get("iou_thrs") is not None:
        # pycocotools compares them with 0.5, which does not work for a list.
        try:
            found["iou_thrs"] = np.atleast_1d(np.asarray(found["iou_thrs"], dtype=float))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"evaluation.iou_thrs is {found['iou_thrs']!r}; give numbers, such as [0.5, 0.75]"
            ) from error
    if isinstance(found.get("proposal_nums"), int):
        found["proposal_nums"] = (found["proposal_nums"],)
    return found


def metrics_of(settings: Mapping[str, Any]) -> list[str]:
    """Return the metrics requested by name; empty for the data set's default."""
    metric = settings.get("metric")
    if metric is None:
        return []
    several = isinstance(metric, Iterable) and not isinstance(metric, str)
    return [str(name) for name in (metric if several else [metric])]


def _check(kind: type[Any], settings: Mapping[str, Any]) -> None:
    name = kind.__name__
    owner: Any = next((c for c in kind.__mro__ if "evaluate" in vars(c)), None)
    if owner is None:
        raise ValueError(f"{name} has no evaluate, so it cannot be data.val or data.test")
    known = _keys(owner)
    if known is not None:
        for key in arguments_of(settings):
            if key not in known:
                hint = did_you_mean(key, {*known, *TIMING, *COLLECTING})
                raise ValueError(f"evaluation.{key} is not a setting of {name}{hint}")
    allowed = _METRICS.get(owner)
    if allowed is None:
        return
    asked = metrics_of(settings)
    for metric in asked:
        if metric not in allowed:
            raise ValueError(
                f"evaluation.metric {metric!r} does not exist for {name}"
                f"{did_you_mean(metric, allowed)}"
            )
    if len(asked) > 1 and owner in (CustomDataset, VOCDataset, OpenImagesDataset):
        raise ValueError(f"evaluation.metric: {name} computes one metric at a time")
    if issubclass(kind, CocoDataset):
        _check_coco(settings, asked or ["bbox"])


def _check_coco(settings: Mapping[str, Any], asked: Sequence[str]) -> None:
    items = settings.get("metric_items")
    check_value("evaluation.metric_items", items, tuple[str, ...] | str | None)
    for item in [items] if isinstance(items, str) else items or ():
        if item not in COCO_ITEMS:
            raise ValueError(
                f"evaluation.metric_items {item!r} does not exist{did_you_mean(item, COCO_ITEMS)}"
            )
    numbers = settings.get("proposal_nums")
    if numbers is None or not set(asked) & {"bbox", "segm", "proposal"}:
        return
    fits = isinstance(numbers, list | tuple) and len(numbers) == 3
    if not fits or (100 not in numbers and {"bbox", "segm"} & set(asked)):
        raise ValueError(
            f"evaluation.proposal_nums is {numbers!r}; COCO's metric needs three numbers, one of"
            " them 100, such as (100, 300, 1000)"
        )


def _keys(owner: Any) -> set[str] | None:
    """Return the keys that a data set's ``evaluate`` accepts; None if it accepts any."""
    signatures = [inspect.signature(owner.evaluate)]
    if _takes_any(signatures[0]):
        if owner not in _METRICS and not owner.__module__.startswith("mmdet."):
            return None
        # Arguments that it does not name are passed on to the base class's ``evaluate``.
        following: list[Any] = [c for c in owner.__mro__[1:] if "evaluate" in vars(c)]
        signatures += [inspect.signature(c.evaluate) for c in following[:1]]
        if issubclass(owner, CocoPanopticDataset):
            signatures.append(inspect.signature(owner.evaluate_det_segm))
    return set(_named(signatures)) - {"self", "results", "logger"}


def _takes_any(signature: inspect.Signature) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def _named(signatures: Iterable[inspect.Signature]) -> Iterable[str]:
    for signature in signatures:
        for parameter in signature.parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD:
                yield parameter.name
