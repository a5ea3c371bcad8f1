"""Count the content and the defects of a data set in the VOC layout."""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dq.counted import counted
from dq.data.layout import (
    SPLITS,
    VocBox,
    annotation_path,
    image_path,
    image_set_path,
    read_boxes,
    read_image_set,
)
from dq.data.pictures import can_read


@dataclass(frozen=True, slots=True, kw_only=True)
class VocSummary:
    """The counts of one VOC folder.

    `num_images` counts each existing split; all other fields count the distinct images of all
    splits. A box has zero size if mmdet reads its far side at or before its near side (`xmax <=
    xmin` or `ymax <= ymin`). A bad image or annotation is missing or unreadable.
    """

    folder: Path
    num_images: dict[str, int]
    num_boxes: int
    num_boxes_per_class: dict[str, int]
    num_zero_size_boxes: int
    num_bad_images: int
    num_bad_annotations: int

    @property
    def is_sound(self) -> bool:
        """Return whether every image and annotation can be read and every box has a size."""
        return not (self.num_zero_size_boxes or self.num_bad_images or self.num_bad_annotations)


def describe_voc(folder: Path) -> VocSummary:
    """Read every listed image and annotation once, and return the counts.

    Args:
        folder: The folder with `JPEGImages`, such as `data/digits` or `data/VOCdevkit/VOC2007`.

    Raises:
        ValueError: The folder lists no split.
    """
    lists = {split: read_image_set(folder, split) for split in SPLITS}
    splits = {split: ids for split, ids in lists.items() if ids is not None}
    if not splits:
        raise ValueError(
            f"{folder} is not in the VOC layout (no {image_set_path(folder, 'train')}): "
            "name the folder that holds ImageSets"
        )
    ids = sorted(set().union(*splits.values()))
    with ThreadPoolExecutor() as pool:
        readable = list(pool.map(lambda image_id: can_read(image_path(folder, image_id)), ids))
        found = list(pool.map(lambda image_id: _boxes(annotation_path(folder, image_id)), ids))
    boxes = [box for some in found if some is not None for box in some]
    per_class = Counter(box.name for box in boxes)
    return VocSummary(
        folder=folder,
        num_images={split: len(listed) for split, listed in splits.items()},
        num_boxes=len(boxes),
        num_boxes_per_class=dict(sorted(per_class.items())),
        num_zero_size_boxes=sum(box.xmax <= box.xmin or box.ymax <= box.ymin for box in boxes),
        num_bad_images=readable.count(False),
        num_bad_annotations=found.count(None),
    )


def summary_text(summary: VocSummary) -> str:
    """Return the summary as a few lines to print, with a warning if it is not sound."""
    lines = [
        f"{summary.folder}",
        f"  images  {_counts(summary.num_images.items())}",
        f"  boxes   {summary.num_boxes} ({_counts(summary.num_boxes_per_class.items())})",
    ]
    if not summary.is_sound:
        lines.append(
            f"  WRONG   {counted(summary.num_bad_images, 'image[s]')} and"
            f" {counted(summary.num_bad_annotations, 'annotation[s]')} missing or unreadable,"
            f" {counted(summary.num_zero_size_boxes, 'box[es]')} of zero size"
        )
    return "\n".join(lines)


def _counts(pairs: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count}" for name, count in pairs)


def _boxes(path: Path) -> tuple[VocBox, ...] | None:
    try:
        return read_boxes(path)
    except (OSError, ValueError):
        return None
