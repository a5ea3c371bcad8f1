"""Draw a split of a config: labelled images, boxes of detectors, anchors; a page with all."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dq.counted import counted, form
from dq.detector.config.registry_errors import explain
from dq.detector.data.class_names import class_list
from dq.detector.data.datasets import dataset_of
from dq.detector.model.build import build_model
from dq.detector.pictures.anchor_part import anchor_part
from dq.detector.pictures.anchors import Fit, InputBoxes, anchors_of, fit_of, grouped
from dq.detector.pictures.detections import detections
from dq.detector.pictures.samples import (
    Counts,
    Sample,
    counts,
    first_indices,
    image_name,
    images_once,
    labelled,
    seen,
    spread,
)
from dq.detector.pictures.sheets import Found, legend, sample_shot, shot, truth_rows
from dq.error_text import with_type
from dq.tracking.pictures.predictions import Box, unmatched
from dq.tracking.reports.show_page import ClassRow, ShowPage
from launcher.plan import Plan
from launcher.stage.stage import Parent, read_checkpoint

log = logging.getLogger(__name__)
# Images whose boxes are compared with the anchors, spread over the split.
ANCHOR_IMAGES = 200


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
class Shown:
    """What was drawn.

    Attributes:
        page: To be written as ``index.html``.
        numbers: The same for programs.
    """

    page: ShowPage
    numbers: Mapping[str, Any]


def parents_of(paths: Sequence[Path], *, trusted: bool) -> list[Parent]:
    """Return the checkpoints to compare.

    Args:
        paths: Of the files.
        trusted: Whether they may be unpickled.

    Raises:
        ValueError: One does not exist or cannot be read.
    """
    return [read_checkpoint(path, trusted=trusted) for path in paths]


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
    # Built before any long work, so that a wrong model section is reported at once.
    heads = anchors_of(build_model(plan.config, classes, initialise=False))
    chosen = spread(len(dataset), wish.number)
    samples = [labelled(dataset, index) for index in chosen]
    # Detectors run only on images that can be read.
    sound = [number for number, sample in enumerate(samples) if sample.error is None]
    found = [
        _found(plan, wish, parent, dataset, [chosen[n] for n in sound], device)
        for parent in parents
    ]
    if len({each.name for each in found}) < len(found):
        found = [
            replace(each, name=f"{each.name}, {which}")
            for each, which in zip(found, ("first", "second"), strict=True)
        ]
    pairs = _with_boxes(samples, sound, found)
    titles = [each.name for each in found]
    shots = [
        shot(wish.folder / f"image_{number:03d}.png", sample, boxes, titles, classes)
        for number, (sample, boxes) in enumerate(_sorted(pairs), start=1)
    ]
    given = _given(plan, wish, dataset)
    places = first_indices(given)
    same = [places.get(image_name(dataset, index)) for index in chosen]
    inputs = [] if found else [
        sample_shot(wish.folder / f"input_{number:03d}.png", sample, classes)
        for number, sample in enumerate(_drawn(given, same, plan.seed), start=1)
    ]  # fmt: skip
    boxes: list[InputBoxes] = []
    note = "No head of this detector has anchors."
    if heads:
        boxes, note = _input_boxes(given, list(places.values()), plan.seed)
    fits = [fit_of(head, boxes) for head in heads]
    counted = counts(dataset, len(classes))
    page = ShowPage(
        title=f"{wish.title}: {wish.split}",
        command=wish.command,
        summary=list(_summary(wish, counted, len(chosen))),
        classes=_class_rows(counted, classes),
        shots_title=_heading(found, wish.lowest),
        legend=legend(found),
        shots=shots,
        samples=inputs,
        anchors=[
            anchor_part(wish.folder / f"anchors_{number}.png", fit, classes)
            for number, fit in enumerate(fits, start=1)
        ],
        anchors_note=note,
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
    """Return the data set whose pipeline feeds the detector: for train, the training's data set."""
    return dataset_of(plan.config, "train", quiet=True) if wish.split == "train" else dataset


def _seen(
    dataset: Any, indices: Iterable[int | None], seed: int, *, with_image: bool = True
) -> tuple[list[Sample], list[str]]:
    """Return the samples at these indices as the pipeline makes them, and a line for each failure.

    An index None is an image that the data set leaves out. A sample on which the pipeline fails is
    left out too.

    Raises:
        ValueError: The pipeline fails on each of them.
    """
    found, failed = [], []
    for index in indices:
        if index is None:
            continue
        try:
            found.append(seen(dataset, index, seed=seed, with_image=with_image))
        except Exception as error:  # a step of the user's own may raise anything
            reason = with_type(explain(error), error)
            failed.append(f"no sample of {image_name(dataset, index)}: {reason}")
    if failed and not found:
        raise ValueError(f"the pipeline fails on each image, first with {failed[0]}; mend it")
    return found, failed


def _drawn(dataset: Any, indices: Iterable[int | None], seed: int) -> list[Sample]:
    """Return the samples to draw; each that is left out is logged."""
    samples, failed = _seen(dataset, indices, seed)
    for line in failed:
        log.warning("%s", line)
    return samples


def _input_boxes(dataset: Any, places: Sequence[int], seed: int) -> tuple[list[InputBoxes], str]:
    """Return the boxes to compare with anchors, and a sentence if the pipeline fails on some.

    That sentence is a warning too. It is one for all of them: with a wrong step they are many.
    """
    chosen = [places[place] for place in spread(len(places), ANCHOR_IMAGES)]
    samples, failed = _seen(dataset, chosen, seed, with_image=False)
    note = ""
    if failed:
        note = (
            f"The boxes of {len(failed)} of {counted(len(chosen), 'image[s] [is|are]')} not"
            f" compared, because the pipeline fails on {form(len(failed), '[it|them]')};"
            f" first: {failed[0]}"
        )
        log.warning("anchors: %s", note)
    boxes = grouped(
        [sample.size for sample in samples],
        [sample.boxes for sample in samples],
        [sample.labels for sample in samples],
    )
    return boxes, note


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


def _summary(wish: Wish, counted: Counts, drawn_images: int) -> Iterator[str]:
    boxes = sum(counted.boxes)
    yield (
        f"{counted.images:,} {form(counted.images, 'image[s]')}, {boxes:,}"
        f" {form(boxes, 'box[es]')}; {drawn_images} {form(drawn_images, 'image[s] [is|are]')}"
        " shown."
    )
    if counted.empty is None:
        yield "The data set has no annotations."
    elif counted.empty:
        yield f"{counted.empty:,} {form(counted.empty, 'image[s] [has|have]')} no box."
    if counted.ignored:
        words = form(counted.ignored, "box[es] [is|are] neither trained nor evaluated (gray)")
        yield f"{counted.ignored:,} {words}."
    missing = sum(not number for number in counted.boxes)
    if missing and boxes:
        yield f"Classes without a box in this split: {missing} of {len(counted.boxes)}."


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
            "labels": [list(row) for row in truth_rows(sample)],
            "error": sample.error,
            "detectors": [],
        }  # fmt: skip
        for each, rows in zip(found, boxes or (), strict=False):
            own["detectors"].append({"name": each.name, "boxes": [list(row) for row in rows]})
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
                "mean_iou_centered": float(fit.centered.mean()) if len(fit.best) else None,
                "good": fit.anchors.good,
                "without_good": fit.without_good,
                "untrained": fit.untrained,
            }
            for fit in fits
        ],
    }
