"""The pictures of images: with their labels, and with the boxes of one or two detectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dq.counted import counted
from dq.detector.pictures.samples import Sample, names_of
from dq.tracking.pictures.drawing import found_mark
from dq.tracking.pictures.lettering import written
from dq.tracking.pictures.predictions import Box, unmatched
from dq.tracking.pictures.sheet import Mark, Panel, drawn
from dq.tracking.reports.show_page import Shot
from dq.whole_file import drafts

# Side of each picture in pixels, by the number of columns of the sheet.
SIDES = {1: 460, 2: 520, 3: 440}
# Maximum number of differing boxes that are named in words.
MOST_NAMED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The boxes of a checkpoint's detector.

    Attributes:
        name: For titles: its file and its integer format.
        boxes: Of each drawn image, the best first.
    """

    name: str
    boxes: Sequence[Sequence[Box]]


def legend(found: Sequence[Found]) -> list[str]:
    """Return what the outlines mean."""
    missed = "Dashed white: a labelled object that is not found."
    if not found:
        return []
    if len(found) == 1:
        return [f"Thick: a box without a label of its class. {missed}"]
    return [f"Thick: a box that only this detector finds. {missed}"]


def shot(
    path: Path,
    sample: Sample,
    boxes: Sequence[Sequence[Box]] | None,
    titles: Sequence[str],
    classes: Sequence[str],
) -> Shot:
    """Write the picture of an image and return it with what is said about it.

    Args:
        path: The PNG file.
        sample: The image with its labels.
        boxes: Of no, one or two detectors; None if the image cannot be read.
        titles: Names of the detectors.
        classes: Their names.
    """
    if boxes is None or sample.image is None:
        _write(path, [Panel(title="cannot be read", image=None, note=str(sample.error))])
        return Shot(file=path.name, name=sample.name, lines=[f"cannot be read: {sample.error}"])
    names, image = written(classes), Image.fromarray(sample.image)
    panels = [_labels(sample, image, names)]
    lines: list[str] = []
    for place, title in zip(range(len(boxes)), titles, strict=True):
        side = _Side.of(sample, boxes, place)
        panels.append(side.panel(title, image, sample.size, names))
        lines += [f"{title}: {line}" for line in side.said(classes, len(boxes))]
    _write(path, panels)
    return Shot(file=path.name, name=sample.name, lines=lines, is_wide=len(panels) > 1)


def sample_shot(path: Path, sample: Sample, classes: Sequence[str]) -> Shot:
    """Write the picture of what a pipeline has made of an image.

    Args:
        path: The PNG file.
        sample: With its image.
        classes: Their names.
    """
    assert sample.image is not None
    _write(path, [_labels(sample, Image.fromarray(sample.image), written(classes))])
    return Shot(file=path.name, name=sample.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """What one detector finds on an image.

    Attributes:
        own: Its boxes, the best first.
        alone: Those without a match among the other detector's boxes, or among the labels.
        missed: Labelled objects that it does not find; None without labels.
        labels: Number of labelled objects.
    """

    own: Sequence[Box]
    alone: frozenset[int]
    missed: Sequence[Box] | None
    labels: int

    @staticmethod
    def of(sample: Sample, boxes: Sequence[Sequence[Box]], place: int) -> _Side:
        truth = truth_rows(sample)
        own = boxes[place]
        others = truth if len(boxes) == 1 else boxes[1 - place]
        is_compared = len(boxes) == 2 or sample.has_labels
        return _Side(
            own=own,
            alone=frozenset(unmatched(own, others) if is_compared else ()),
            missed=[truth[n] for n in unmatched(truth, own)] if sample.has_labels else None,
            labels=len(truth),
        )

    def panel(
        self, title: str, image: Image.Image, size: tuple[int, int], names: Sequence[str]
    ) -> Panel:
        marks = [Mark(corners=each[:4], is_dashed=True) for each in self.missed or ()]
        # The best are drawn last.
        for number in sorted(range(len(self.own)), key=lambda n: self.own[n][4]):
            marks.append(found_mark(self.own[number], names, is_strong=number in self.alone))
        title = f"{title}: {_number(len(self.own))}"
        return Panel(title=title, image=image, size=size, marks=marks)

    def said(self, classes: Sequence[str], detectors: int) -> Iterator[str]:
        if self.missed is not None and self.labels:
            found = self.labels - len(self.missed)
            yield f"finds {found} of {counted(self.labels, 'labelled object[s]')}"
        if self.alone:
            first = [self.own[n] for n in sorted(self.alone)[:MOST_NAMED]]
            words = ", ".join(f"{_name(box, classes)} {box[4]:.2f}" for box in first)
            more = ", ..." if len(self.alone) > MOST_NAMED else ""
            what = "only here" if detectors == 2 else "without a label"
            yield f"{_number(len(self.alone))} {what} (thick): {words}{more}"


def truth_rows(sample: Sample) -> list[Box]:
    """Return the labels of an image as ``(x1, y1, x2, y2, label)``."""
    return [
        [*box, label]
        for box, label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True)
    ]


def _name(box: Box, classes: Sequence[str]) -> str:
    return "proposal" if box[5] < 0 else names_of(classes, [int(box[5])])[0]


def _number(boxes: int) -> str:
    return counted(boxes, "box[es]")


def _labels(sample: Sample, image: Image.Image, names: Sequence[str]) -> Panel:
    marks = [Mark(corners=box, text="ignored") for box in sample.ignored.tolist()]
    texts = names_of(names, sample.labels.tolist())
    for (*corners, label), text in zip(truth_rows(sample), texts, strict=True):
        marks.append(Mark(corners=corners, label=int(label), text=text))
    said = f"labels: {_number(len(sample.boxes))}" if sample.has_labels else "no labels"
    if len(sample.ignored):
        said += f", {len(sample.ignored)} ignored"
    width, height = sample.size
    return Panel(title=f"{said}; {width} x {height}", image=image, size=sample.size, marks=marks)


def _write(path: Path, panels: Sequence[Panel]) -> None:
    with drafts(path) as (draft,):
        drawn(panels, SIDES[len(panels)]).save(draft, format="PNG")
