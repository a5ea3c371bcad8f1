"""One list of classes for all stages, in the order of the annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mmdet.datasets import DATASETS, CocoDataset, CustomDataset

from dq.detector.data.class_names import (
    ClassList,
    check_order,
    class_list,
    classes_of_checkpoint,
    names_by_label,
    read_categories,
)
from dq.detector.data.datasets import dataset_of
from dq.detector.evaluation.evaluate import score
from tests.detector.coco_set import (
    CLASSES,
    NUMBERS,
    config_of,
    found,
    section,
    write_coco,
    write_voc,
)

FILE_ORDER = ("three", "one", "two")


@DATASETS.register_module(force=True)
class OrderOfItsOwn(CocoDataset):  # type: ignore[misc]
    """Labels the categories in the order of the config, as many custom data sets do."""

    def load_annotations(self, ann_file: str) -> Any:
        """Read the file."""
        infos = super().load_annotations(ann_file)
        ids = {c["name"]: c["id"] for c in self.coco.dataset["categories"]}
        self.cat_ids = [ids[name] for name in self.CLASSES]
        self.cat2label = {number: label for label, number in enumerate(self.cat_ids)}
        return infos


@DATASETS.register_module(force=True)
class Nameless(CustomDataset):  # type: ignore[misc]
    """Has labels without class names."""

    def load_annotations(self, ann_file: str) -> Any:
        """Read nothing."""
        return [{"filename": "0.png", "width": 96, "height": 96}]

    def get_ann_info(self, idx: int) -> Any:
        """Return no boxes."""
        return {"bboxes": __import__("numpy").zeros((0, 4)), "labels": []}


def built(config: Any, split: str) -> Any:
    return dataset_of(config, split, test_mode=True)


def labels_of(dataset: Any) -> dict[str, set[int]]:
    """Return for each class the labels of its boxes, by the names in the file."""
    names = {number: name for name, number in NUMBERS.items()}
    labels: dict[str, set[int]] = {}
    for index, info in enumerate(dataset.data_infos):
        own = dataset.coco.load_anns(dataset.coco.get_ann_ids(img_ids=[info["id"]]))
        for annotation, label in zip(own, dataset.get_ann_info(index)["labels"], strict=True):
            labels.setdefault(names[annotation["category_id"]], set()).add(int(label))
    return labels


def check(dataset: Any, names: tuple[str, ...]) -> None:
    """Check that names, labels and metric agree."""
    assert dataset.CLASSES == names == names_by_label(dataset)
    assert labels_of(dataset) == {n: {names.index(n)} for n in ("one", "two")}
    metrics = score(dataset, found(names), {"metric": "bbox"})
    assert metrics["bbox_mAP"] == pytest.approx(1.0)


@pytest.mark.parametrize("order", [CLASSES, FILE_ORDER])
def test_the_order_of_the_file_counts(order: tuple[str, ...], tmp_path: Path) -> None:
    config = config_of(*[section(write_coco(tmp_path, order))] * 2)
    known = class_list(config)
    assert known.names == order
    assert known.is_certain
    assert (known.note is None) == (order == CLASSES)
    for split in ("train", "val", "test"):
        check(built(config, split), order)


def test_a_test_set_is_read_in_the_order_of_the_training_set(tmp_path: Path) -> None:
    train = section(write_coco(tmp_path, FILE_ORDER, "train.json"))
    test = section(write_coco(tmp_path, CLASSES, "test.json"))
    config = config_of([train, test], test)
    assert class_list(config).names == FILE_ORDER
    assert "read in that order" in str(class_list(config).note)
    check(built(config, "test"), FILE_ORDER)
    both = built(config, "train")
    assert both.CLASSES == FILE_ORDER
    for part in both.datasets:
        check(part, FILE_ORDER)


def test_wrappers_have_the_same_class_names(tmp_path: Path) -> None:
    leaf = section(write_coco(tmp_path, FILE_ORDER))
    wrapped = {"type": "RepeatDataset", "times": 2, "dataset": leaf}
    config = config_of({"type": "ConcatDataset", "datasets": [wrapped, leaf]}, leaf)
    assert built(config, "train").CLASSES == FILE_ORDER


def test_a_data_set_with_its_own_order_of_labels_is_evaluated_in_it(tmp_path: Path) -> None:
    own = section(write_coco(tmp_path, FILE_ORDER), type="OrderOfItsOwn")
    config = config_of(own, own)
    assert class_list(config).names == CLASSES
    check(built(config, "test"), CLASSES)


def test_an_xml_test_set_is_labelled_as_a_coco_training_set(tmp_path: Path) -> None:
    train = section(write_coco(tmp_path, FILE_ORDER))
    voc = {
        "type": "VOCFolderDataset",
        "classes": CLASSES,
        "ann_file": str(write_voc(tmp_path / "voc")),
        "img_prefix": str(tmp_path / "voc"),
        "pipeline": [],
    }
    config = config_of(train, voc)
    dataset = built(config, "test")
    assert dataset.CLASSES == FILE_ORDER
    assert score(dataset, found(FILE_ORDER), {})["mAP"] == pytest.approx(1.0)
    assert class_list(config_of(voc, voc)).names == CLASSES


def test_without_annotations_the_order_comes_from_the_checkpoint(tmp_path: Path) -> None:
    absent = section(tmp_path / "absent.json")
    known = class_list(config_of(absent, absent))
    assert known.names == CLASSES
    assert not known.is_certain
    assert classes_of_checkpoint(known, {"meta": {"CLASSES": FILE_ORDER}}) == FILE_ORDER
    assert classes_of_checkpoint(known, {"meta": {"CLASSES": ("other",)}}) == CLASSES
    there = section(write_coco(tmp_path))
    known = class_list(config_of(there, there))
    assert classes_of_checkpoint(known, {"meta": {"CLASSES": FILE_ORDER}}) == CLASSES


def test_classes_may_be_a_file(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(CLASSES))
    given = section(write_coco(tmp_path, FILE_ORDER), classes=str(names))
    assert class_list(config_of(given, given)).names == FILE_ORDER
    given["classes"] = "person"
    with pytest.raises(ValueError, match=r"classes is 'person'.*written classes=\('person',\)"):
        class_list(config_of(given, given))


def test_classes_without_names_are_numbers(tmp_path: Path) -> None:
    nameless = {"type": "Nameless", "ann_file": "x", "pipeline": []}
    config = config_of(nameless, nameless, model={"bbox_head": {"num_classes": 3}})
    assert class_list(config).names == ("0", "1", "2")
    with pytest.raises(ValueError, match="has no classes"):
        class_list(config_of(nameless, nameless))


def test_openimages_has_its_names_in_a_separate_file(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("/m/b,two\n/m/a,one\n")
    (tmp_path / "boxes.csv").write_text("head\n")
    given = {
        "type": "OpenImagesDataset",
        "ann_file": str(tmp_path / "boxes.csv"),
        "label_file": str(tmp_path / "names.csv"),
        "get_supercategory": False,
        "pipeline": [],
    }
    assert class_list(config_of(given, given)).names == ("two", "one")


def test_a_category_that_occurs_twice_is_named(tmp_path: Path) -> None:
    file = write_coco(tmp_path)
    content = json.loads(file.read_text())
    content["categories"].append({"id": 77, "name": "two"})
    file.write_text(json.dumps(content))
    config = config_of(section(file), section(file))
    with pytest.raises(ValueError, match="'two' twice"):
        built(config, "test")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("where", ["first", "last"])
def test_categories_are_found_anywhere_in_the_file(where: str, indent: Any, tmp_path: Path) -> None:
    content = json.loads(write_coco(tmp_path).read_text())
    categories = content.pop("categories")
    trap = {"info": {"categories": "none"}}
    parts = [{"categories": categories}, content, trap]
    merged: dict[str, Any] = {}
    for part in parts if where == "first" else reversed(parts):
        merged |= part
    (tmp_path / "other.json").write_text(json.dumps(merged, indent=indent))
    assert read_categories(tmp_path / "other.json") == categories


@pytest.mark.parametrize("ours", [True, False])
def test_a_checkpoint_with_the_classes_in_another_order_is_refused_if_it_is_ours(
    ours: bool, caplog: pytest.LogCaptureFixture
) -> None:
    here = ClassList(names=FILE_ORDER, is_certain=True)
    meta = {"CLASSES": ("one", "two", "three")} | ({"key": "1"} if ours else {})
    said = (
        "run.pth has the classes in the order one, two, three, the annotations in the order three"
    )
    if ours:
        with pytest.raises(ValueError, match=said):
            check_order(here, {"meta": meta}, "run.pth")
    else:
        check_order(here, {"meta": meta}, "run.pth")
        assert said in caplog.text


@pytest.mark.parametrize(
    ("names", "is_certain"),
    [(FILE_ORDER, True), (("one", "two", "three"), False), (("one", "two"), True), ((), True)],
)
def test_other_classes_or_no_annotations_are_no_other_order(
    names: tuple[str, ...], is_certain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    here = ClassList(names=FILE_ORDER, is_certain=is_certain)
    check_order(here, {"meta": {"CLASSES": names, "key": "1"}}, "run.pth")
    assert not caplog.text
