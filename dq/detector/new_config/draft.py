"""From the photographs of a folder to the text of a config and of its COCO files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcv import Config

from dq.counted import counted
from dq.data.formats.coco import OF_A_CONFIG
from dq.data.formats.labelled import Labelled
from dq.data.own.anchors import Anchors, fit_anchors
from dq.data.own.coco_json import coco_text
from dq.data.own.splits import Splits
from dq.data.own.statistics import box_shapes, fitted_size, images_text, table
from dq.detector.config.config_file import load_config_file
from dq.detector.model.build import build_model
from dq.detector.model.float_weights import check_pretrained
from dq.detector.new_config.source import source
from dq.detector.new_config.template import (
    Facts,
    anchors_wanted,
    filled,
    scaling_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user wants to train, and where.

    Attributes:
        detector: Config of a shipped one.
        size: Side of the input in pixels; None fits it to the boxes.
        backbone: File of weights to start from, or None.
        config: The file to write.
        command: The command line, for the config's first line.
    """

    detector: Path
    size: int | None
    backbone: Path | None
    config: Path
    command: str

    @property
    def annotations(self) -> Path:
        """Return the folder of the config's COCO files, beside it."""
        return self.config.absolute().with_name(f"{self.config.stem}_annotations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A config that is not written yet.

    Attributes:
        report: Lines about the boxes and the anchors.
        texts: The text of each file; the config is the last.
    """

    report: tuple[str, ...]
    texts: Mapping[Path, str]


def drafted(wish: Wish, labelled: Labelled, splits: Splits) -> Draft:
    """Return a config for these photographs; its detector has been built once.

    Raises:
        ValueError: There is no such detector, or the file of the backbone does not fit.
    """
    _refuse_references((str(labelled.folder), str(wish.annotations), *labelled.classes))
    template = load_config_file(wish.detector)
    train = splits.photos["train"]
    scaling = scaling_of(template, wish.size or fitted_size(train))
    anchors = _anchors(template, box_shapes(train, scaling), scaling.size[0])
    facts = Facts(
        classes=labelled.classes,
        side=scaling.size[0],
        root=labelled.folder,
        annotations=wish.annotations,
        tested=splits.tested,
        images=len(train),
        anchors=anchors,
        backbone=wish.backbone,
    )
    settings = filled(template, facts)
    _check(settings, labelled.classes)
    report = (*table(splits, labelled.classes, scaling), *_words(anchors))
    files = {
        wish.annotations / f"{name}.json": coco_text(
            photos, labelled.classes, labelled.folder, OF_A_CONFIG
        )
        for name, photos in splits.photos.items()
    }
    return Draft(
        report=report,
        texts={**files, wish.config: source(settings, _head(wish, labelled, splits, anchors))},
    )


def _refuse_references(names: Sequence[str]) -> None:
    """Raise ValueError if a config would replace a part of a name."""
    for name in names:
        if "${" in name:
            raise ValueError(f"a config replaces ${{...}} in {name}; give it another name")


def _anchors(template: Config, shapes: Any, side: int) -> Anchors | None:
    wanted = anchors_wanted(template)
    if wanted is None:
        return None
    strides, number = wanted
    return fit_anchors(shapes, strides, number, side)


def _check(settings: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Build the detector, and compare its backbone with the file that it starts from."""
    config = Config({"model": settings["model"], "image_size": settings["image_size"]})
    # What a reader of the whole config would put in.
    if config.model.get("input_size") == "${image_size}":
        config.model.input_size = settings["image_size"]
    check_pretrained(build_model(config, tuple(classes), initialise=False))


def _words(anchors: Anchors | None) -> list[str]:
    if anchors is None:
        return []
    number = sum(map(len, anchors.sizes))
    return [
        f"{counted(number, 'anchor[s]')} fitted by k-means: mean overlap with the boxes"
        f" {anchors.mean_iou:.2f}, {anchors.matched:.1%} of them above 0.5"
    ]


def _head(wish: Wish, labelled: Labelled, splits: Splits, anchors: Anchors | None) -> list[str]:
    boxes = sum(len(photo.boxes) for some in splits.photos.values() for photo in some)
    scratch = "The backbone starts from scratch; --backbone FILE.pth would need fewer passes."
    return [
        f"Written by `{wish.command}`:",
        f"Images: {images_text(splits.photos)}; {counted(boxes, 'box[es]')} of"
        f" {counted(len(labelled.classes), 'class[es]')} ({labelled.format}).",
        *_words(anchors),
        *([] if wish.backbone else [scratch]),
        "",
        "Train in float, calibrate, train in int8, evaluate:",
        f"    launcher run {shlex.quote(wish.config.name)}",
    ]
