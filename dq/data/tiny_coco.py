"""A few digit images in COCO's format, with every kind of annotation that mmdet uses.

Boxes, polygons, proposals and segmentation maps: enough to train two steps of any config family and
evaluate it. It is too small to learn anything.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dq.data.originals import read_originals
from dq.data.scene import Placed, draw_scene

CLASSES = ("low", "middle", "high")
NUM_IMAGES = 4
SPLITS = ("train", "test")
# As in real data sets: neither contiguous nor starting at 0.
_IDS = (2, 3, 7)
_NUM_CORNERS = 8
_NUM_PROPOSALS = 20


def write_tiny_coco(folder: Path, *, image_size: int = 128, seed: int = 0) -> Path:
    """Write images, ``<split>.json``, ``<split>_proposals.pkl`` and ``maps`` and return the folder.

    Args:
        folder: Created if missing; existing files are overwritten.
        image_size: Width and height in pixels, at least 60.
        seed: Another seed draws other scenes.

    Raises:
        ValueError: The `demo` extra is missing.
    """
    for name in ("images", "maps"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(SPLITS):
        _write_split(folder, split, image_size, [seed, number])
    return folder


def _write_split(folder: Path, split: str, size: int, seed: list[int]) -> None:
    originals = read_originals(split)
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": i, "name": n} for i, n in zip(_IDS, CLASSES, strict=True)]
    proposals = []
    for index in range(NUM_IMAGES):
        rng = np.random.default_rng([*seed, index])
        scene = draw_scene(originals, size, rng)
        stem = f"{split}_{index}"
        # Integer pixels, so that they are read back exactly.
        Image.fromarray(scene.picture).save(folder / "images" / f"{stem}.png")
        image = {"id": index + 1, "file_name": f"{stem}.png", "height": size, "width": size}
        content["images"].append(image)
        shown = np.zeros((size, size), dtype=np.uint8)
        for digit in scene.digits:
            number = len(content["annotations"]) + 1
            content["annotations"].append(_annotation(digit, number, index + 1))
            shown[digit.top : digit.bottom, digit.left : digit.right] = _class_of(digit) + 1
        Image.fromarray(shown).save(folder / "maps" / f"{stem}.png")
        proposals.append(_proposals(scene.digits, size, rng))
    (folder / f"{split}.json").write_text(json.dumps(content))
    (folder / f"{split}_proposals.pkl").write_bytes(pickle.dumps(proposals))


def _class_of(digit: Placed) -> int:
    return min(digit.label // 4, len(CLASSES) - 1)


def _annotation(digit: Placed, number: int, image: int) -> dict[str, Any]:
    width, height = digit.right - digit.left, digit.bottom - digit.top
    turns = np.arange(_NUM_CORNERS) * (2 * np.pi / _NUM_CORNERS)
    x = digit.left + width / 2 * (1 + np.cos(turns))
    y = digit.top + height / 2 * (1 + np.sin(turns))
    return {
        "id": number,
        "image_id": image,
        "category_id": _IDS[_class_of(digit)],
        "bbox": [digit.left, digit.top, width, height],
        "area": width * height,
        "segmentation": [np.stack([x, y], 1).flatten().round(2).tolist()],
        "iscrowd": 0,
    }


def _proposals(
    digits: tuple[Placed, ...], size: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return boxes ``(n, 5)``, corners and score: shifted boxes of the digits, and random ones."""
    corners = np.sort(rng.uniform(0, size, (_NUM_PROPOSALS, 2, 2)), axis=1).reshape(-1, 4)
    own = np.array([[d.left, d.top, d.right, d.bottom] for d in digits], dtype=np.float64)
    boxes = np.concatenate([own + rng.uniform(-2, 2, own.shape), corners]).clip(0, size)
    scores = rng.uniform(0, 1, (len(boxes), 1))
    return np.concatenate([boxes, scores], 1).astype(np.float32)
