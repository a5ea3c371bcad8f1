"""A type that does not exist is one line that names the key, wherever it is in a config."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from mmcv import Config, ConfigDict
from mmcv.cnn import CONV_LAYERS
from mmcv.runner import Hook
from mmdet.datasets import DATASETS, CustomDataset
from mmdet.models.builder import MODELS

from dq.detector.config.config_file import load_config_file
from dq.detector.config.known_types import check_data_types, check_training_types
from dq.detector.config.read import finish
from dq.detector.survey.families import representatives

# One- and two-stage detectors, a transformer, a mosaic, hooks, and names of operators.
FAMILIES = ("mask_rcnn", "yolox", "detr", "detectors", "cascade_rpn", "fpg", "albu_example")
# Parts whose names are not types of a registry.
OTHERS = ("nms", "roi_layer", "adapt_cfg", "bbox_params")


def config_of(family: str) -> Config:
    return finish(load_config_file(representatives([family])[family]))


def places(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every dict with a type, with its key."""
    if isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from places(item, f"{key}[{number}]")
    if isinstance(value, dict):
        if isinstance(value.get("type"), str):
            yield key, value
        for name, item in value.items():
            is_named = name in OTHERS or name.endswith("_trans")
            if not is_named and value.get("type") != "Albu":
                yield from places(item, f"{key}.{name}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_of_mmdet_has_only_known_types(family: str) -> None:
    check_training_types(config_of(family))


@pytest.mark.parametrize(
    ("family", "change"), [("mask_rcnn", "{}x"), ("yolox", "mmfoo.{}"), ("detr", "mmfoo.{}")]
)
def test_each_wrong_type_of_a_config_is_named(family: str, change: str) -> None:
    config = config_of(family)
    parts = {name: config[name] for name in ("model", "optimizer", "custom_hooks", "log_config")}
    parts |= {f"data.{split}": config.data[split] for split in ("train", "val", "test")}
    found = [place for name, part in parts.items() for place in places(part, name)]
    assert len(found) > 30
    for key, section in found:
        right = section["type"]
        section["type"] = change.format(right)
        with pytest.raises(ValueError, match=re.escape(key)) as raised:
            check_training_types(config)
        section["type"] = right
        said = str(raised.value)
        assert said.startswith(f"{key}.type is {change.format(right)!r}"), said
        assert "\n" not in said
        assert f"did you mean {right}?" in said
    check_training_types(config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr_config": {"policy": "stepp"}}, "lr_config.policy is 'stepp'"),
        ({"lr_config": {"policy": "onecycle"}}, "did you mean OneCycle?"),
        ({"lr_config": {"type": "StepLrUpdaterHook", "step": [8]}}, "lr_config has no policy"),
        ({"momentum_config": {"policy": "cyclc"}}, "did you mean Cyclic?"),
        ({"optimizer": {"type": "SGD", "constructor": "Default"}}, "optimizer.constructor is"),
        ({"optimizer_config": {"type": "OptimizerHok"}}, "did you mean OptimizerHook?"),
    ],
)
def test_names_outside_sections_with_a_type(changes: dict[str, Any], said: str) -> None:
    config = config_of("yolox")
    for name, section in changes.items():
        config[name] = ConfigDict(section)
    with pytest.raises(ValueError, match=said):
        check_training_types(config)


@pytest.mark.parametrize("key", ["model.test_cfg.rcnn.nms", "model.roi_head.bbox_roi_extractor"])
def test_operators_are_looked_for_among_operators(key: str) -> None:
    config = config_of("mask_rcnn")
    section = config.model
    for name in key.split(".")[1:]:
        section = section[name]
    part = section.get("roi_layer", section)
    part["type"] += "x"
    with pytest.raises(ValueError, match=rf"{key}.*did you mean {part['type'][:-1]}\?"):
        check_training_types(config)


def test_a_list_of_data_sets_is_walked_through() -> None:
    section = copy.deepcopy(config_of("mask_rcnn").data.train)
    section.pipeline[1].type = "LoadAnnotation"
    with pytest.raises(ValueError, match=r"data.train\[1\].datasets\[0\].pipeline\[1\].type is"):
        check_data_types([{}, {"type": "ConcatDataset", "datasets": [section]}], "data.train")


def test_settings_of_a_users_class_are_its_own() -> None:
    config = config_of("mask_rcnn")

    @CONV_LAYERS.register_module()
    class UsersConv:
        pass

    @MODELS.register_module()
    class UsersNeck:
        pass

    try:
        config.model.neck = ConfigDict(type="UsersNeck", flow={"type": "upwards"})
        check_training_types(config)
        config.model.backbone.conv_cfg = {"type": "UsersConvs"}
        with pytest.raises(ValueError, match=r"did you mean UsersConv\?"):
            check_training_types(config)
    finally:
        CONV_LAYERS.module_dict.pop("UsersConv")
        MODELS.module_dict.pop("UsersNeck")


@pytest.mark.parametrize("key", ["custom_hooks", "log_config.hooks", "data.train.pipeline"])
def test_a_text_where_a_dict_belongs_is_named(key: str) -> None:
    """`--cfg-options log_config.hooks=[dict(type=X)]` gives a text."""
    config = config_of("mask_rcnn")
    config.custom_hooks = []
    config.merge_from_dict({key: ["dict(type='X')"]})
    with pytest.raises(ValueError, match=re.escape(f"{key}[0] is the text \"dict(type='X')\"")):
        check_training_types(config)


@pytest.mark.parametrize("key", ["custom_hooks", "log_config.hooks"])
def test_a_hook_that_is_neither_a_section_nor_a_hook_is_named(key: str) -> None:
    config = config_of("mask_rcnn")
    config.custom_hooks = []
    config.merge_from_dict({key: [5]})
    with pytest.raises(ValueError, match=re.escape(f"{key}[0] is 5; use dict(type=...)")):
        check_training_types(config)
    config.merge_from_dict({key: [Hook()]})
    check_training_types(config)


@pytest.mark.parametrize("value", [None, 5, "SGD", [{"type": "SGD"}]])
def test_an_optimizer_that_is_no_section_is_named(value: object) -> None:
    config = config_of("mask_rcnn")
    config.optimizer = value
    with pytest.raises(ValueError, match=r"optimizer is .*; use dict\(type='SGD', lr=0.01\)"):
        check_training_types(config)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("classes", 5, "classes is 5; list the names of the classes as texts, or give the path"),
        ("classes", ["a", 1], r"classes is \['a', 1\]; list the names"),
        ("classes", {"a": 1}, "classes is {'a': 1}; list the names"),
        ("pipeline", [], r"pipeline is \[\]; list its steps"),
        ("pipeline", (), r"pipeline is \(\); list its steps"),
        ("pipeline", None, "pipeline is None; list its steps"),
        ("pipeline", 5, "pipeline is 5; list its steps"),
    ],
)
@pytest.mark.parametrize("family", ["mask_rcnn", "yolox"])
def test_a_setting_of_mmdets_data_sets_has_its_type(
    family: str, setting: str, value: object, said: str
) -> None:
    config = config_of(family)
    for split in ("train", "test"):
        section = config.data[split]
        key = f"data.{split}"
        while "dataset" in section:
            section, key = section.dataset, f"{key}.dataset"
        before = copy.deepcopy(section)
        section[setting] = value
        with pytest.raises(ValueError, match=rf"^{key}\.{said}"):
            check_training_types(config)
        section.clear()
        section.update(before)
    check_training_types(config)


def test_a_users_data_set_reads_its_settings_in_its_own_way() -> None:
    @DATASETS.register_module()
    class UsersSet(CustomDataset):  # type: ignore[misc]  # mmdet has no types
        pass

    try:
        config = config_of("mask_rcnn")
        config.data.train = {"type": "UsersSet", "classes": 5, "pipeline": []}
        check_training_types(config)
    finally:
        DATASETS.module_dict.pop("UsersSet")
