"""Data sets and images of odd kinds, for the tests of `launcher show`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("<b>bold</b>", "細胞 \u2603", "a very long name of a class that no picture has room for")


def write_images(folder: Path) -> dict[str, tuple[int, int]]:
    """Write images of every mode and of odd sizes; return width and height by name."""
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    color = Image.fromarray(drawn)
    made = {
        "gray.png": color.convert("L"),
        "palette.png": color.convert("P"),
        "one bit.png": color.convert("1"),
        "alpha.png": color.convert("RGBA"),
        "cmyk.jpg": color.convert("CMYK"),
        "16 bit.png": Image.fromarray(drawn[:, :, 0].astype(np.uint16) * 200),
        "narrow.png": color.resize((3, 2000)),
        "dot.png": color.resize((1, 1)),
        "large.png": Image.new("RGB", (4000, 2500), "#446688"),
        "ünïcode 'quoted' & <b>.png": color,
    }
    for name, image in made.items():
        image.save(folder / name)
    return {name: image.size for name, image in made.items()}


def write_coco(
    folder: Path, sizes: Mapping[str, tuple[int, int]], names: Sequence[str] = NAMES
) -> Path:
    """Write a COCO file with boxes of odd kinds: over the edge, ignored, none; return the file."""
    images, boxes = [], []
    for number, (name, (width, height)) in enumerate(sizes.items()):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        if number % 3 == 2:
            continue  # An image without boxes.
        for label in range(len(names)):
            size = [width / 4, height / 5, width / 2, height / 2]
            boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": label + 1,
                          "bbox": size, "area": size[2] * size[3],
                          "iscrowd": int(label == 2)})  # fmt: skip
    content = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(names)],
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return path
