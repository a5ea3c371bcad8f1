"""COCO: JSON files with the images, boxes and categories of many images."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dq.data.formats.folder import Folder, split_named
from dq.data.formats.labelled import (
    MISSING,
    NO_BOX,
    NO_CLASS,
    TWO_SPLITS,
    UNREADABLE,
    Box,
    Findings,
    Labelled,
    Photo,
    class_names,
    size_of,
)

# Files of the COCO data set about something other than boxes of objects.
_OTHERS = ("captions", "panoptic", "stuff", "image_info")
# The ``info`` of files that belong to a config, and are not read again as someone's labels.
OF_A_CONFIG = {"description": "splits of a config, written by launcher init"}
_SECTIONS = ("images", "annotations", "categories")


def read(folder: Folder) -> Labelled | None:
    """Return the content of a folder with COCO files; None if it has none."""
    findings = Findings()
    contents = _contents(folder, findings)
    if not contents:
        return None
    photos: dict[Path, Photo] = {}
    names: list[str] = []
    # A file with all images beside one for each split says nothing new.
    for path in sorted(contents, key=lambda p: (_split(folder, p) is None, p)):
        content, split = contents[path], _split(folder, path)
        categories = _categories(content)
        boxes = _boxes_by_image(content, categories, folder.relative(path), findings)
        names += [name for name in categories.values() if name not in names]
        for entry in _dicts(content, "images"):
            name = str(entry.get("file_name"))
            image = folder.image_named(path, name, split)
            if image is None:
                findings.add(MISSING, name)
            elif image not in photos:
                photos[image] = Photo(
                    file=image,
                    boxes=tuple(boxes.pop(_id(entry.get("id")), ())),
                    size=size_of(entry.get("width"), entry.get("height")),
                    split=split or folder.split_of(image),
                )
            elif split is not None and split != photos[image].split:
                findings.add(TWO_SPLITS, folder.relative(image))
    found = tuple(photos[path] for path in sorted(photos))
    classes = class_names(found, _without_heads(names, contents.values(), found))
    return Labelled(
        format="coco", folder=folder.root, photos=found, classes=classes, findings=findings
    )


def _contents(folder: Folder, findings: Findings) -> dict[Path, Any]:
    """Return the content of each COCO file about boxes."""
    found = {}
    for path in folder.ending(".json"):
        if path.stem.startswith(_OTHERS):
            continue
        try:
            raw = path.read_bytes()
            # Most JSON files of other formats are not worth parsing here.
            if not all(f'"{name}"'.encode() in raw for name in _SECTIONS):
                continue
            content = json.loads(raw)
        except (OSError, ValueError, RecursionError):
            findings.add(UNREADABLE, folder.relative(path))
            continue
        is_one = isinstance(content, dict) and all(
            isinstance(content.get(n), list) for n in _SECTIONS
        )
        if is_one and content.get("info") != OF_A_CONFIG:
            found[path] = content
    return found


def _split(folder: Folder, path: Path) -> str | None:
    """Return the split of a COCO file by its name, ``instances_train2017``, or its folder."""
    words = [split_named(word) for word in re.split(r"[^a-zA-Z0-9]+", path.stem)]
    return next((word for word in words if word), None) or folder.split_of(path)


def _dicts(content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    return [entry for entry in content[key] if isinstance(entry, dict)]


def _id(value: Any) -> str:
    """Return an id for comparison: some tools write 7 in one place and "7" or 7.0 in another."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _categories(content: Mapping[str, Any]) -> dict[str, str]:
    entries = [c for c in _dicts(content, "categories") if c.get("name")]
    return {_id(c.get("id")): " ".join(str(c["name"]).split()) for c in entries}


def _without_heads(names: Sequence[str], contents: Any, photos: Sequence[Photo]) -> list[str]:
    """Return the names without those that only group others, as Roboflow's first category does."""
    entries = [c for content in contents for c in _dicts(content, "categories")]
    heads = {
        str(c.get("supercategory")) for c in entries if c.get("supercategory") != c.get("name")
    }
    used = {box.name for photo in photos for box in photo.boxes}
    return [name for name in names if name in used or name not in heads]


def _boxes_by_image(
    content: Mapping[str, Any], categories: Mapping[str, str], file: str, findings: Findings
) -> dict[str, list[Box]]:
    names = {
        _id(entry.get("id")): str(entry.get("file_name")) for entry in _dicts(content, "images")
    }
    found: dict[str, list[Box]] = defaultdict(list)
    for entry in _dicts(content, "annotations"):
        image, label = _id(entry.get("image_id")), categories.get(_id(entry.get("category_id")))
        corners = _corners(entry)
        if image not in names:
            findings.add("box[es] of an image that is not listed, left out", file)
        elif label is None:
            findings.add(NO_CLASS, names[image])
        elif corners is None:
            findings.add(NO_BOX, names[image])
        else:
            crowd = bool(entry.get("iscrowd")) or bool(entry.get("ignore"))
            found[image].append(Box(name=label, corners=corners, ignored=crowd))
    return found


def _corners(entry: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """Return the corners of ``bbox``, else of the polygons; None if there is neither."""
    try:
        if entry.get("bbox"):
            x, y, width, height = (float(value) for value in entry["bbox"])
            return x, y, x + width, y + height
        polygons = entry["segmentation"]
        xs = [float(value) for polygon in polygons for value in polygon[0::2]]
        ys = [float(value) for polygon in polygons for value in polygon[1::2]]
        return min(xs), min(ys), max(xs), max(ys)
    except (KeyError, TypeError, ValueError):
        return None
