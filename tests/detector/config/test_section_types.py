"""Each field of the dataclasses that read a section of mmdet's refuses values of a wrong type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from mmcv import Config

from dq.detector.data.loader_options import LoaderOptions, evaluation_workers
from dq.detector.training.checkpoint_plan import CheckpointPlan, checkpoint_plan
from dq.field_types import field_type, fits

VALUES: tuple[Any, ...] = ("x", 5, 0.5, True, False, None, [], ["x"], {}, {"x": 5})
Read = Callable[[dict[str, Any]], object]


def loader(split: str) -> Callable[[dict[str, Any]], Config]:
    """Return a function that makes a config of ``data.<split>_dataloader``."""
    return lambda given: Config({"data": {f"{split}_dataloader": given}})


READ: dict[str, tuple[type[Any], Read]] = {
    "checkpoint_config": (CheckpointPlan, lambda given: checkpoint_plan(given, counts_epochs=True)),
    "data.train_dataloader": (LoaderOptions, lambda g: LoaderOptions.of(loader("train")(g))),
    "data.val_dataloader": (LoaderOptions, lambda g: evaluation_workers(loader("val")(g), "val")),
}


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (section, each.name)
        for section, (kind, _) in READ.items()
        for each in fields(kind)
        if each.name != "opencv_num_threads"  # A key of its own at the top.
    ],
)
def test_a_field_has_the_type_of_its_annotation(section: str, name: str) -> None:
    kind, read = READ[section]
    annotation, _ = field_type(kind, name)
    for value in VALUES:
        if fits(value, annotation):
            continue
        with pytest.raises(ValueError, match=rf"^{section}\.{name} (is|must be) ") as caught:
            read({name: value})
        assert repr(value) in str(caught.value)


def test_the_number_of_a_class_aware_sampler_is_whole() -> None:
    _, read = READ["data.train_dataloader"]
    read({"class_aware_sampler": {"num_sample_class": 2}})
    with pytest.raises(ValueError, match=r"class_aware_sampler.num_sample_class is '2'; use a who"):
        read({"class_aware_sampler": {"num_sample_class": "2"}})
