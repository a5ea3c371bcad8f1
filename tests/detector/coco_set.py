"""A tiny data set in COCO's format (boxes, masks, a crowd), and others derived from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = 96
CLASSES = ("one", "two", "three")
# Ids that are not sorted and have gaps, as in real files.
NUMBERS = {"two": 9, "three": 4, "one": 30}
# The objects of each image: class and corners.
OBJECTS: Sequence[Sequence[tuple[str, tuple[int, int, int, int]]]] = (
    (("one", (4, 6, 40, 50)), ("two", (50, 20, 90, 60))),
    (("two", (10, 10, 60, 80)),),
    (("one", (20, 30, 70, 90)), ("one", (2, 2, 30, 28))),
    (),
)


def write_coco(
    folder: Path, order: Sequence[str] = CLASSES, name: str = "set.json", **category: Any
) -> Path:
    """Write images and annotations; return the file.

    Args:
        folder: Images are written to its ``images``.
        order: Order of the categories in the file.
        name: Name of the file.
        category: More entries for each category.
    """
    images, annotations = [], []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, objects in enumerate(OBJECTS):
        file = f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        for _, (x1, y1, x2, y2) in objects:
            pixels[y1:y2, x1:x2] = 40 * (number + 1)
        Image.fromarray(pixels).save(folder / "images" / file)
        images.append({"id": 100 + number, "file_name": file, "width": SIZE, "height": SIZE})
        for label, (x1, y1, x2, y2) in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + number,
                    "category_id": NUMBERS[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": NUMBERS[label], "name": label, **category} for label in order]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def write_voc(folder: Path) -> Path:
    """Write the same data in Pascal VOC's layout; return the list of images."""
    for below in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / below).mkdir(parents=True, exist_ok=True)
    for number, objects in enumerate(OBJECTS):
        Image.fromarray(np.full((SIZE, SIZE, 3), 99, np.uint8)).save(
            folder / f"JPEGImages/{number}.jpg"
        )
        written = []
        for label, corners in objects:
            # VOC counts pixels from 1.
            tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
            box = "".join(f"<{tag}>{value + 1}</{tag}>" for tag, value in tags)
            written.append(f"<object><name>{label}</name><bndbox>{box}</bndbox></object>")
        size = f"<size><width>{SIZE}</width><height>{SIZE}</height><depth>3</depth></size>"
        (folder / f"Annotations/{number}.xml").write_text(
            f"<annotation><folder>JPEGImages</folder>{size}{''.join(written)}</annotation>"
        )
    path = folder / "ImageSets/Main/test.txt"
    path.write_text("".join(f"{number}\n" for number in range(len(OBJECTS))))
    return path


def section(file: Path, **more: Any) -> dict[str, Any]:
    """Return a config section for a COCO file, without pipeline."""
    return {
        "type": "CocoDataset",
        "classes": CLASSES,
        "ann_file": str(file),
        "img_prefix": str(file.parent / "images"),
        "pipeline": [],
        **more,
    }


def found(names: Sequence[str], *, masks: bool = False) -> list[Any]:
    """Return results equal to the annotations, for labels in this order."""
    results: list[Any] = []
    for objects in OBJECTS:
        boxes: list[list[list[float]]] = [[] for _ in names]
        bitmaps: list[list[Any]] = [[] for _ in names]
        for label, corners in objects:
            boxes[names.index(label)].append([*map(float, corners), 0.9])
            bitmap = np.zeros((SIZE, SIZE), dtype=bool)
            bitmap[corners[1] : corners[3], corners[0] : corners[2]] = True
            bitmaps[names.index(label)].append(bitmap)
        arrays = [np.array(rows, np.float32).reshape(-1, 5) for rows in boxes]
        results.append((arrays, bitmaps) if masks else arrays)
    return results


def nothing(num_classes: int, *, masks: bool = False) -> list[Any]:
    """Return results without detections."""
    none = [np.zeros((0, 5), np.float32) for _ in range(num_classes)]
    bitmaps: list[list[Any]] = [[] for _ in range(num_classes)]
    return [(none, bitmaps) if masks else none for _ in OBJECTS]


def proposals(results: Sequence[Any]) -> list[Any]:
    """Return boxes by class as the proposals of an RPN."""
    return [np.concatenate(boxes) for boxes in results]


def config_of(
    train: Mapping[str, Any] | Sequence[Any], test: Mapping[str, Any] | Sequence[Any], **more: Any
) -> Any:
    """Return the part of a config that defines the data sets."""
    from mmcv import Config

    return Config({"data": {"train": train, "val": test, "test": test}, "model": {}, **more})
