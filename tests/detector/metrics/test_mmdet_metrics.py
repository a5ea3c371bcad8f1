"""Every metric of mmdet's data sets: 1 for perfect results, 0 for none, 0 without objects."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmdet.datasets import DATASETS, CustomDataset, build_dataset

from dq.detector.data.class_names import set_classes_
from dq.detector.evaluation.evaluate import main_metric, score, scores
from dq.detector.evaluation.kept_predictions import class_precision, predictions_of
from dq.detector.metrics.results import encoded
from tests.detector.coco_set import (
    CLASSES,
    NUMBERS,
    OBJECTS,
    SIZE,
    found,
    nothing,
    proposals,
    section,
    write_coco,
    write_voc,
)


@DATASETS.register_module(force=True)
class MeasuredInMemory(CustomDataset):  # type: ignore[misc]
    """mmdet's CustomDataset with a list of annotations in memory."""

    def load_annotations(self, ann_file: str) -> Any:
        """Return the annotations."""
        infos = []
        for number, objects in enumerate(OBJECTS):
            labels = np.array([CLASSES.index(label) for label, _ in objects], dtype=np.int64)
            boxes = np.array([corners for _, corners in objects], np.float32).reshape(-1, 4)
            annotation = {"bboxes": boxes, "labels": labels}
            infos.append({"filename": f"{number}.png", "width": SIZE, "height": SIZE})
            infos[-1]["ann"] = annotation
        return infos


def coco(folder: Path, **more: Any) -> Any:
    # The file is not in the order of its ids.
    return section(write_coco(folder), **more)


def cityscapes(folder: Path) -> Any:
    file = write_coco(folder)
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["segm_file"] = "none.png"
    file.write_text(json.dumps(content))
    return section(file, type="CityscapesDataset")


def occluded(folder: Path) -> Any:
    for name in ("occluded", "separated"):
        (boxes, masks) = encoded(found(CLASSES, masks=True))[0]
        corners = boxes[0][0][:4]
        with (folder / f"{name}.pkl").open("wb") as file:
            pickle.dump([("0.png", "one", None, corners, masks[0][0])], file)
    kept = {f"{name}_ann": str(folder / f"{name}.pkl") for name in ("occluded", "separated")}
    return coco(folder, type="OccludedSeparatedCocoDataset", **kept)


def xml(folder: Path, **more: Any) -> Any:
    return {
        "type": "XMLDataset",
        "classes": CLASSES,
        "ann_file": str(write_voc(folder)),
        "img_prefix": f"{folder}/",
        "pipeline": [],
        **more,
    }


def openimages(folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "names.csv").write_text("".join(f"/m/{name},{name}\n" for name in CLASSES))
    (folder / "tree.json").write_text(
        json.dumps({"LabelName": "all", "Subcategory": [{"LabelName": f"/m/{n}"} for n in CLASSES]})
    )
    lines = ["head"]
    for number, objects in enumerate(OBJECTS):
        for label, (x1, y1, x2, y2) in objects:
            shares = ",".join(str(value / SIZE) for value in (x1, x2, y1, y2))
            lines.append(f"{number},x,/m/{label},1,{shares},0,0,0,0,0")
    (folder / "boxes.csv").write_text("\n".join(lines))
    return {
        "type": "OpenImagesDataset",
        "ann_file": str(folder / "boxes.csv"),
        "label_file": str(folder / "names.csv"),
        "hierarchy_file": str(folder / "tree.json"),
        "load_image_level_labels": False,
        "load_from_file": False,
        "pipeline": [],
    }


Kind = tuple[Callable[[Path], Any], dict[str, Any], str, str]
BOXES, MASKS, RPN = "boxes", "masks", "rpn"
KINDS: dict[str, Kind] = {
    "coco": (coco, {}, BOXES, "bbox_mAP"),
    "coco, by class": (coco, {"metric": "bbox", "classwise": True}, BOXES, "bbox_mAP"),
    "coco masks": (coco, {"metric": ["bbox", "segm"]}, MASKS, "bbox_mAP"),
    "coco masks alone": (coco, {"metric": ("segm",)}, MASKS, "segm_mAP"),
    "coco items": (coco, {"metric_items": ["mAP_50", "mAP_75"]}, BOXES, "bbox_mAP_50"),
    "coco overlaps": (coco, {"iou_thrs": [0.5, 0.6]}, BOXES, "bbox_mAP"),
    "coco proposals of boxes": (coco, {"metric": "proposal"}, BOXES, "AR@1000"),
    "coco proposals": (coco, {"metric": ["proposal"]}, RPN, "AR@1000"),
    "coco fast proposals": (coco, {"metric": "proposal_fast"}, RPN, "AR@1000"),
    "cityscapes": (cityscapes, {"metric": ["bbox", "segm"]}, MASKS, "bbox_mAP"),
    "occluded": (occluded, {"metric": ["bbox", "segm"]}, MASKS, "bbox_mAP"),
    "deep fashion": (lambda f: coco(f, type="DeepFashionDataset"), {}, BOXES, "bbox_mAP"),
    "objects 365": (lambda f: coco(f, type="Objects365V1Dataset"), {}, BOXES, "bbox_mAP"),
    "xml": (xml, {}, BOXES, "mAP"),
    "xml, several overlaps": (xml, {"iou_thr": (0.5, 0.75)}, BOXES, "mAP"),
    "xml recall": (xml, {"metric": "recall"}, RPN, "recall@100@0.5"),
    "voc 2007": (lambda f: xml(f / "VOC2007", type="VOCDataset"), {}, BOXES, "mAP"),
    "voc 2012": (lambda f: xml(f / "VOC2012", type="VOCDataset"), {"metric": "mAP"}, BOXES, "mAP"),
    "voc recall": (
        lambda f: xml(f / "VOC2007", type="VOCDataset"),
        {"metric": "recall", "iou_thr": [0.5, 0.7]},
        RPN,
        "AR@1000",
    ),
    "voc folder": (lambda f: xml(f, type="VOCFolderDataset"), {}, BOXES, "mAP"),
    "voc folder, coco": (
        lambda f: xml(f, type="VOCFolderDataset"),
        {"metric": "bbox"},
        BOXES,
        "bbox_mAP",
    ),
    "wider": (lambda f: xml(f, type="WIDERFaceDataset"), {}, BOXES, "mAP"),
    "in memory": (
        lambda f: {"type": "MeasuredInMemory", "classes": CLASSES, "ann_file": "-", "pipeline": []},
        {},
        BOXES,
        "mAP",
    ),
    "in memory, recall": (
        lambda f: {"type": "MeasuredInMemory", "classes": CLASSES, "ann_file": "-", "pipeline": []},
        {"metric": "recall", "iou_thr": [0.5, 0.75]},
        RPN,
        "AR@1000",
    ),
    "openimages": (openimages, {"metric": "mAP"}, BOXES, "mAP"),
    "two": (lambda f: [coco(f), coco(f)], {}, BOXES, "0_bbox_mAP"),
    "two as one": (
        lambda f: {
            "type": "ConcatDataset",
            "separate_eval": False,
            "datasets": [xml(f), xml(f)],
        },
        {},
        BOXES,
        "mAP",
    ),
}


def dataset_of(make: Callable[[Path], Any], folder: Path) -> Any:
    given = make(folder)
    dataset = build_dataset(copy.deepcopy(given), {"test_mode": True})
    set_classes_(dataset, None)
    if "openimages" in make.__name__:
        dataset.get_img_shape = lambda _: dataset.__dict__.update(
            test_img_shapes=[(SIZE, SIZE)] * len(dataset)
        )
    return dataset


def results_of(kind: str, dataset: Any, *, empty: bool) -> list[Any]:
    masks = kind == MASKS
    names = list(dataset.CLASSES)
    made = nothing(len(names), masks=masks) if empty else found(names, masks=masks)
    made = made * (len(dataset) // len(OBJECTS)) + made[: len(dataset) % len(OBJECTS)]
    return proposals(made) if kind == RPN else encoded(made)


@pytest.mark.parametrize("name", KINDS)
def test_perfect_results_give_one_and_no_detections_give_zero(name: str, tmp_path: Path) -> None:
    make, settings, kind, metric = KINDS[name]
    dataset = dataset_of(make, tmp_path)
    perfect = scores(dataset, results_of(kind, dataset, empty=False), settings)
    none = scores(dataset, results_of(kind, dataset, empty=True), settings)
    assert main_metric(perfect.metrics) == (metric, pytest.approx(1.0))
    assert main_metric(none.metrics) == (metric, 0.0)
    assert set(none.metrics) == set(perfect.metrics), "a metric is there whatever is found"
    assert perfect.tables
    assert min(perfect.metrics.values()) >= 0


@pytest.mark.parametrize("name", KINDS)
def test_the_other_metrics_are_kept_too(name: str, tmp_path: Path) -> None:
    make, _, kind, _ = KINDS[name]
    dataset = dataset_of(make, tmp_path)
    if "openimages" in name:
        pytest.skip("its boxes are in shares of images that are not there")
    for empty, value in ((False, 1.0), (True, 0.0)):
        results = results_of(kind, dataset, empty=empty)
        classes = class_precision(dataset, results)
        kept = predictions_of(dataset, results)
        if kind == RPN:
            assert classes == {}
            assert kept is None
            continue
        # There is no box of the third class, so it has no precision.
        assert classes == {"one": pytest.approx(value), "two": pytest.approx(value)}
        assert kept is not None
        assert kept.classes == list(dataset.CLASSES)
        assert len(kept.pictures) == len(dataset)
        first = kept.pictures[0]
        assert len(first.truth) == 2
        boxes = sorted([*box[:4], box[5]] for box in first.found)
        assert boxes == ([] if empty else sorted(first.truth))


def test_without_annotated_objects_the_metric_is_zero(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_coco(tmp_path)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    dataset = build_dataset(section(file), {"test_mode": True})
    assert score(dataset, found(CLASSES), {"metric": "bbox"}) == {"bbox_mAP": 0.0}
    assert "no annotated objects" in caplog.text
    voc = dataset_of(lambda f: xml(f, type="VOCFolderDataset"), tmp_path / "voc")
    for path in (tmp_path / "voc/Annotations").glob("*.xml"):
        path.write_text(f"<annotation><size><width>{SIZE}</width></size></annotation>")
    for metric, name in (("mAP", "mAP"), ("bbox", "bbox_mAP")):
        assert main_metric(score(voc, found(CLASSES), {"metric": metric})) == (name, 0.0)


def test_the_table_by_class_gives_each_class_its_own_numbers(tmp_path: Path) -> None:
    dataset = build_dataset(coco(tmp_path), {"test_mode": True})
    results = [[boxes[0], boxes[1][:0], boxes[2]] for boxes in found(CLASSES)]
    tables = scores(dataset, results, {"metric": "bbox", "classwise": True}).tables
    row = next(line for line in tables.splitlines() if "| one" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["one", "1.000", "two", "0.000", "three", "nan"]
    assert "creating index" not in tables


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (BOXES, {"metric": "segm"}, "segm is not in results"),
        (BOXES, {"metric": "proposal_fast"}, "needs a detector that proposes boxes"),
        (RPN, {"metric": "bbox"}, "bbox is not in results"),
        (BOXES, {"nonsense": 1}, "nonsense"),
    ],
)
def test_results_of_the_wrong_kind_are_refused_in_one_line(
    kind: str, settings: Any, said: str, tmp_path: Path
) -> None:
    dataset = build_dataset(coco(tmp_path), {"test_mode": True})
    with pytest.raises(ValueError, match=said) as caught:
        score(dataset, results_of(kind, dataset, empty=False), settings)
    assert "\n" not in str(caught.value)


class OneNumber:
    """A data set with its own ``evaluate``."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def evaluate(self, results: Any, logger: Any = None) -> Any:
        return self.found


def test_data_sets_of_the_users_own() -> None:
    assert score(OneNumber({"PQ": 50.0, "SQ": np.float32(20)}), [], {}) == {"PQ": 50.0, "SQ": 20.0}
    assert main_metric({"PQ": 50.0}) == ("PQ", 0.5)
    assert score(OneNumber({"a": -1, "b": 0.5, "c": float("nan")}), [], {}) == {"a": 0.0, "b": 0.5}
    for nothing_said in ({}, None, {"text": "x"}):
        with pytest.raises(ValueError, match="returns no number"):
            score(OneNumber(nothing_said), [], {})
    with pytest.raises(ValueError, match="has no evaluate"):
        score(object(), [], {})


def is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@pytest.mark.skipif(not is_there("lvis"), reason="package lvis is not installed")
def test_lvis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float", float, raising=False)  # which LVIS still uses
    more = {"frequency": "f", "image_count": 3, "instance_count": 3}
    file = write_coco(tmp_path, **more)
    content = json.loads(file.read_text())
    for image in content["images"]:
        image |= {"not_exhaustive_category_ids": [], "neg_category_ids": list(NUMBERS.values())}
        image["coco_url"] = f"http://images.cocodataset.org/{image['file_name']}"
    file.write_text(json.dumps(content))
    for kind in ("LVISDataset", "LVISV1Dataset"):
        dataset = build_dataset(section(file, type=kind), {"test_mode": True})
        set_classes_(dataset, None)
        settings = {"metric": ["bbox", "segm"], "classwise": True}
        for empty, value in ((False, 1.0), (True, 0.0)):
            found_ = scores(dataset, results_of(MASKS, dataset, empty=empty), settings)
            assert main_metric(found_.metrics) == ("bbox_AP", pytest.approx(value))
            assert found_.metrics["segm_AP"] == pytest.approx(value)
            row = next(line for line in found_.tables.splitlines() if "| one" in line)
            assert [c.strip() for c in row.strip("|").split("|")][::2] == list(CLASSES)
            assert f"{value:.3f}" in row


@pytest.mark.skipif(not is_there("panopticapi"), reason="package panopticapi is not installed")
def test_panoptic(tmp_path: Path) -> None:
    dataset, maps = panoptic(tmp_path)
    settings = {"metric": ["PQ", "bbox", "segm"], "classwise": True}
    for empty, value in ((False, 1.0), (True, 0.0)):
        instances = results_of(MASKS, dataset, empty=empty)
        void = len(dataset.CLASSES)
        results = [
            {"pan_results": np.full_like(m, void) if empty else m.copy(), "ins_results": i}
            for m, i in zip(maps, instances, strict=True)
        ]
        found_ = scores(dataset, results, settings)
        name, main = main_metric(found_.metrics)
        assert (name, main) == ("bbox_mAP", pytest.approx(value))
        assert found_.metrics["PQ"] == pytest.approx(100 * value)
        assert np.array_equal(results[0]["pan_results"], np.full_like(maps[0], void)) == empty


def panoptic(folder: Path) -> tuple[Any, list[Any]]:
    """Return a panoptic data set with only things, and its annotation maps."""
    from mmdet.core import INSTANCE_OFFSET
    from PIL import Image

    instances = write_coco(folder, isthing=1)
    content = json.loads(instances.read_text())
    names = [category["name"] for category in content["categories"]]
    (folder / "segments").mkdir()
    entries, maps = [], []
    for number, objects in enumerate(OBJECTS):
        truth = np.zeros((SIZE, SIZE, 3), np.uint8)
        label_map = np.full((SIZE, SIZE), len(names))
        infos = []
        for place, (label, (x1, y1, x2, y2)) in enumerate(objects, start=1):
            truth[y1:y2, x1:x2, 0] = place
            label_map[y1:y2, x1:x2] = names.index(label) + place * INSTANCE_OFFSET
            infos.append(
                {
                    "id": place,
                    "category_id": NUMBERS[label],
                    "iscrowd": 0,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                }
            )
        Image.fromarray(truth).save(folder / f"segments/{number}.png")
        entry = {"image_id": 100 + number, "file_name": f"{number}.png", "segments_info": infos}
        entries.append(entry)
        maps.append(label_map)
    file = folder / "panoptic.json"
    file.write_text(json.dumps({**content, "annotations": entries}))
    made = section(
        file,
        type="CocoPanopticDataset",
        ins_ann_file=str(instances),
        seg_prefix=str(folder / "segments"),
    )
    del made["classes"]
    dataset = build_dataset(made, {"test_mode": True})
    set_classes_(dataset, None)
    return dataset, maps
