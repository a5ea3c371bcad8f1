"""Draw a split of a config: labelled images, boxes of detectors, anchors; a page with all."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dq.detector.data.class_names import class_list
from dq.detector.data.datasets import dataset_of
from dq.detector.model.build import build_model
from dq.detector.pictures.anchors import Fit, InputBoxes, anchors_of, fit_of, grouped
from dq.detector.pictures.detections import detections
from dq.detector.pictures.samples import (
    Counts,
    Sample,
    counts,
    images_once,
    labelled,
    names_of,
    seen,
    spread,
)
from dq.tracking.pictures.drawing import found_mark
from dq.tracking.pictures.lettering import written
from dq.tracking.pictures.predictions import Box, unmatched
from dq.tracking.pictures.sheet import Mark, Panel, drawn
from dq.tracking.reports.anchor_plot import anchor_plot
from dq.tracking.reports.show_page import AnchorPart, ClassRow, Shot, ShowPage
from dq.whole_file import drafts, write_whole
from launcher.plan import Plan
from launcher.stage.stage import Parent

log = logging.getLogger(__name__)
# Images whose boxes are compared with the anchors, spread over the split.
ANCHOR_IMAGES = 200
# Of a sheet's pictures: two columns are wider than three.
SIDES = {1: 560, 2: 520, 3: 440}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be drawn.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        number: Number of images.
        lowest: Smallest score of a box.
        folder: Where the files go; it exists.
        command: The command line, for the page.
        title: Of the page.
    """

    split: str
    number: int
    lowest: float
    folder: Path
    command: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The boxes of a checkpoint's detector.

    Attributes:
        name: For titles: its file and its integer format.
        boxes: Of each drawn image, the best first.
    """

    name: str
    boxes: Sequence[Sequence[Box]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What was drawn.

    Attributes:
        page: To be written as ``index.html``.
        numbers: The same for programs.
    """

    page: ShowPage
    numbers: Mapping[str, Any]


def shown(plan: Plan, wish: Wish, parents: Sequence[Parent], device: torch.device) -> Shown:
    """Write the pictures into the folder, and return the page.

    Args:
        plan: All settings of the command.
        wish: What is to be drawn.
        parents: No checkpoint, one, or two that are compared.
        device: Where the detectors run.

    Raises:
        ValueError: The split, the model or a checkpoint does not fit the config.
    """
    classes = class_list(plan.config).names
    dataset = images_once(plan.config, wish.split)
    # Before anything long: the model may not fit.
    heads = anchors_of(build_model(plan.config, classes, initialise=False))
    chosen = spread(len(dataset), wish.number)
    samples = [labelled(dataset, index) for index in chosen]
    # What cannot be read cannot be detected on.
    sound = [number for number, sample in enumerate(samples) if sample.error is None]
    found = [
        _found(plan, wish, parent, dataset, [chosen[n] for n in sound], device)
        for parent in parents
    ]
    pairs = _with_boxes(samples, sound, found)
    shots = [
        _shot(wish.folder, number, sample, boxes, [each.name for each in found], classes)
        for number, (sample, boxes) in enumerate(_sorted(pairs), start=1)
    ]
    given = _given(plan, wish, dataset)
    inputs = [] if found else [
        _input(wish.folder, number, sample, classes)
        for number, sample in enumerate(_views(given, plan.seed, wish.number), start=1)
    ]  # fmt: skip
    boxes = _input_boxes(given, plan.seed) if heads else []
    fits = [fit_of(head, boxes) for head in heads]
    counted = counts(dataset, len(classes))
    page = ShowPage(
        title=f"{wish.title}: {wish.split}",
        command=wish.command,
        summary=list(_summary(wish, counted, len(chosen))),
        classes=_class_rows(counted, classes),
        shots_title=_heading(found, wish.lowest),
        shots=shots,
        samples=inputs,
        anchors=[_anchor_part(wish.folder, n, fit, classes) for n, fit in enumerate(fits, start=1)],
        anchors_note="" if heads else "No head of this detector has anchors.",
    )
    return Shown(page=page, numbers=_numbers(wish, counted, classes, pairs, found, fits))


def _found(
    plan: Plan, wish: Wish, parent: Parent, dataset: Any, indices: Sequence[int],
    device: torch.device,
) -> Found:  # fmt: skip
    bits, boxes = detections(
        plan.config,
        parent.content,
        parent.source,
        dataset,
        indices,
        lowest=wish.lowest,
        device=device,
    )
    return Found(name=f"{bits} ({parent.path.name})", boxes=boxes)


def _given(plan: Plan, wish: Wish, dataset: Any) -> Any:
    """Return the data set whose samples the detector is given: with the training's pipeline."""
    return dataset_of(plan.config, "train", quiet=True) if wish.split == "train" else dataset


def _views(dataset: Any, seed: int, number: int) -> Iterator[Sample]:
    for index in spread(len(dataset), number):
        try:
            yield seen(dataset, index, seed=seed)
        except ValueError as error:  # An image that cannot be read is named.
            log.warning("%s", error)


def _input_boxes(dataset: Any, seed: int) -> list[InputBoxes]:
    sizes, boxes, labels = [], [], []
    for index in spread(len(dataset), ANCHOR_IMAGES):
        try:
            sample = seen(dataset, index, seed=seed, with_image=False)
        except ValueError as error:
            log.warning("%s", error)
            continue
        sizes.append(sample.size)
        boxes.append(sample.boxes)
        labels.append(sample.labels)
    return grouped(sizes, boxes, labels)


Drawn = tuple[Sample, list[Sequence[Box]] | None]


def _with_boxes(
    samples: Sequence[Sample], sound: Sequence[int], found: Sequence[Found]
) -> list[Drawn]:
    """Return each image with the boxes of each detector; None for an image that is not read."""
    place = {number: at for at, number in enumerate(sound)}
    return [
        (sample, [each.boxes[place[n]] for each in found] if n in place else None)
        for n, sample in enumerate(samples)
    ]


def _sorted(pairs: Sequence[Drawn]) -> list[Drawn]:
    """Return the images on which two detectors differ most first."""

    def differing(pair: Drawn) -> int:
        boxes = pair[1]
        if boxes is None or len(boxes) < 2:
            return 0
        return len(unmatched(boxes[0], boxes[1])) + len(unmatched(boxes[1], boxes[0]))

    return sorted(pairs, key=differing, reverse=True)


def _shot(
    folder: Path,
    number: int,
    sample: Sample,
    boxes: Sequence[Sequence[Box]] | None,
    detectors: Sequence[str],
    classes: Sequence[str],
) -> Shot:
    file = f"image_{number:03d}.png"
    names = written(classes)
    if boxes is None or sample.image is None:
        panel = Panel(title="cannot be read", image=None, note=str(sample.error))
        _write(folder / file, [panel])
        return Shot(file=file, name=sample.name, lines=(f"cannot be read: {sample.error}",))
    image = Image.fromarray(sample.image)
    truth = [[*map(float, box), int(label)] for box, label in zip(sample.boxes, sample.labels,
                                                                  strict=True)]  # fmt: skip
    panels = [Panel(title=_labels_title(sample), image=image, marks=_label_marks(sample, names))]
    lines: list[str] = []
    for place, own in enumerate(boxes):
        others = truth if len(boxes) == 1 else boxes[1 - place]
        strong = set(unmatched(own, others))
        missed = [truth[n] for n in unmatched(truth, own)]
        marks = [Mark(corners=each[:4], is_dashed=True) for each in missed]
        order = sorted(range(len(own)), key=lambda n: own[n][4])
        marks += [found_mark(own[n], names, is_strong=n in strong) for n in order]
        title = f"{detectors[place]}: {len(own)} boxes"
        panels.append(Panel(title=title, image=image, marks=marks))
        lines += _said(detectors, place, own, strong, missed, classes, len(truth))
    _write(folder / file, panels)
    return Shot(file=file, name=sample.name, lines=lines)


def _said(
    detectors: Sequence[str],
    place: int,
    own: Sequence[Box],
    strong: set[int],
    missed: Sequence[Box],
    classes: Sequence[str],
    labels: int,
) -> Iterator[str]:
    """Yield what a detector finds of the labels, and what it finds alone."""
    if labels:
        yield f"{detectors[place]}: finds {labels - len(missed)} of {labels} labelled objects"
    if strong:
        shown = ", ".join(f"{_name(own[n], classes)} {own[n][4]:.2f}" for n in sorted(strong)[:12])
        more = ", ..." if len(strong) > 12 else ""
        what = "only here" if len(detectors) == 2 else "without a label"
        yield f"{detectors[place]}, {len(strong)} {what} (thick): {shown}{more}"


def _name(box: Box, classes: Sequence[str]) -> str:
    return "proposal" if box[5] < 0 else names_of(classes, [int(box[5])])[0]


def _labels_title(sample: Sample) -> str:
    if not sample.has_labels:
        return "no labels"
    width, height = sample.size
    ignored = f", {len(sample.ignored)} ignored" if len(sample.ignored) else ""
    number = len(sample.boxes)
    return f"labels: {number} box{'' if number == 1 else 'es'}{ignored}; {width} x {height}"


def _label_marks(sample: Sample, names: Sequence[str]) -> list[Mark]:
    marks = [Mark(corners=box, text="ignored") for box in sample.ignored.tolist()]
    texts = names_of(names, sample.labels.tolist())
    for box, label, text in zip(sample.boxes.tolist(), sample.labels.tolist(), texts, strict=True):
        marks.append(Mark(corners=box, label=label, text=text))
    return marks


def _input(folder: Path, number: int, sample: Sample, classes: Sequence[str]) -> Shot:
    assert sample.image is not None
    file = f"input_{number:03d}.png"
    image = Image.fromarray(sample.image)
    title = _labels_title(sample)
    panel = Panel(title=title, image=image, marks=_label_marks(sample, written(classes)))
    _write(folder / file, [panel])
    return Shot(file=file, name=sample.name)


def _write(path: Path, panels: Sequence[Panel]) -> None:
    with drafts(path) as (draft,):
        drawn(panels, SIDES[len(panels)]).save(draft, format="PNG")


def _anchor_part(folder: Path, number: int, fit: Fit, classes: Sequence[str]) -> AnchorPart:
    anchors = fit.anchors
    head = anchors.head or "head"
    total = sum(len(base) for base in anchors.base)
    lines = [f"{total} anchors per position of {len(anchors.base)} levels, strides"
             f" {', '.join(f'{stride[0]:g}' for stride in anchors.strides)}."]  # fmt: skip
    if not len(fit.best):
        return AnchorPart(head=head, lines=[*lines, "There are no boxes."], file=None, rows=())
    lines += _verdict(fit)
    file = f"anchors_{number}.png"
    levels = [
        (stride[0], base[:, 2:] - base[:, :2])
        for stride, base in zip(anchors.strides, anchors.base, strict=True)
    ]
    write_whole(folder / file, anchor_plot(fit.best, fit.shapes, levels, anchors.good))
    rows = []
    for label in np.unique(fit.labels).tolist():
        own = fit.best[fit.labels == label]
        name = names_of(classes, [label])[0]
        rows.append((name, len(own), float(own.mean()), float((own < anchors.good).mean())))
    return AnchorPart(head=head, lines=lines, file=file, rows=rows)


def _verdict(fit: Fit) -> Iterator[str]:
    good, least = fit.anchors.good, fit.anchors.least
    yield (
        f"{len(fit.best):,} boxes in the network's input have a mean best IoU of"
        f" {fit.best.mean():.2f}; {100 * fit.without_good:.1f} % have no good anchor (IoU of at"
        f" least {good:g})."
    )
    if fit.untrained and least is not None and least < good:
        yield (f"{100 * fit.untrained:.1f} % are below {least:g}: no anchor is trained on them.")
    if fit.without_good > 0.1:
        yield (
            "That is much: other sizes, ratios or strides of the anchors, or a larger input, would"
            " find more; `launcher init` fits anchors to a folder's boxes."
        )


def _summary(wish: Wish, counted: Counts, drawn_images: int) -> Iterator[str]:
    boxes = sum(counted.boxes)
    yield f"{counted.images:,} images, {boxes:,} boxes; {drawn_images} images are shown."
    if counted.empty is None:
        yield "The data set has no annotations."
    elif counted.empty:
        yield f"{counted.empty:,} images have no box."
    if counted.ignored:
        yield f"{counted.ignored:,} boxes are neither trained nor evaluated (gray)."
    missing = sum(not number for number in counted.boxes)
    if missing and boxes:
        yield f"{missing} of {len(counted.boxes)} classes have no box in this split."


def _class_rows(counted: Counts, classes: Sequence[str]) -> list[ClassRow]:
    return [
        ClassRow(name=name, boxes=boxes, images=images, size=size)
        for name, boxes, images, size in zip(
            classes, counted.boxes, counted.in_images, counted.sizes, strict=True
        )
    ]


def _heading(found: Sequence[Found], lowest: float) -> str:
    if not found:
        return "Labelled images"
    names = " and ".join(each.name for each in found)
    order = ", the most different first" if len(found) == 2 else ""
    return f"Labels, and boxes of {names} with a score of at least {lowest:g}{order}"


def _numbers(
    wish: Wish,
    counted: Counts,
    classes: Sequence[str],
    pairs: Sequence[Drawn],
    found: Sequence[Found],
    fits: Sequence[Fit],
) -> dict[str, Any]:
    images = []
    for sample, boxes in pairs:
        own: dict[str, Any] = {
            "name": sample.name,
            "labels": [[*box, label] for box, label in zip(sample.boxes.tolist(),
                                                           sample.labels.tolist(), strict=True)],
            "error": sample.error,
        }  # fmt: skip
        for each, rows in zip(found, boxes or (), strict=False):
            own.setdefault("detectors", {})[each.name] = [list(row) for row in rows]
        images.append(own)
    return {
        "split": wish.split,
        "images": counted.images,
        "without_boxes": counted.empty,
        "classes": [
            {"name": name, "boxes": boxes, "images": number}
            for name, boxes, number in zip(classes, counted.boxes, counted.in_images, strict=True)
        ],
        "shown": images,
        "anchors": [
            {
                "head": fit.anchors.head,
                "boxes": len(fit.best),
                "mean_iou": float(fit.best.mean()) if len(fit.best) else None,
                "good": fit.anchors.good,
                "without_good": fit.without_good,
                "untrained": fit.untrained,
            }
            for fit in fits
        ],
    }
