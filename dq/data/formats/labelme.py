"""LabelMe: a JSON file for each image, with rectangles, polygons and circles."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dq.data.formats.folder import Folder
from dq.data.formats.labelled import (
    NO_BOX,
    NO_CLASS,
    NO_IMAGE,
    SECOND,
    UNREADABLE,
    Box,
    Findings,
    Labelled,
    Photo,
    class_names,
    size_of,
)

_SHAPES = ("rectangle", "polygon", "circle", "mask")
# LabelMe's own names for what is no class.
_NO_CLASS = ("__ignore__", "_background_")


def read(folder: Folder) -> Labelled | None:
    """Return the content of a folder with LabelMe files; None if it has none."""
    findings = Findings()
    photos: dict[Path, Photo] = {}
    seen = 0
    for path in folder.ending(".json"):
        content = _content(path, findings, folder)
        if content is None:
            continue
        seen += 1
        image = folder.image_of(path, str(content.get("imagePath") or ""))
        if image is None:
            findings.add(NO_IMAGE, folder.relative(path))
        elif image in photos:
            findings.add(SECOND, folder.relative(path))
        else:
            photos[image] = Photo(
                file=image,
                boxes=_boxes(content["shapes"], folder.relative(path), findings),
                size=size_of(content.get("imageWidth"), content.get("imageHeight")),
                split=folder.split_of(image) or folder.split_of(path),
            )
    if not seen:
        return None
    found = tuple(photos[path] for path in sorted(photos))
    return Labelled(
        format="labelme",
        folder=folder.root,
        photos=found,
        classes=class_names(found),
        findings=findings,
    )


def _content(path: Path, findings: Findings, folder: Folder) -> dict[str, Any] | None:
    try:
        raw = path.read_bytes()
        content = json.loads(raw) if b'"shapes"' in raw else None
    except (OSError, ValueError, RecursionError):
        findings.add(UNREADABLE, folder.relative(path))
        return None
    is_one = isinstance(content, dict) and isinstance(content.get("shapes"), list)
    return content if is_one else None


def _boxes(shapes: Sequence[Any], name: str, findings: Findings) -> tuple[Box, ...]:
    found = []
    for shape in shapes:
        kind = (shape.get("shape_type") or "polygon") if isinstance(shape, dict) else ""
        label = " ".join(str((shape if kind else {}).get("label") or "").split())
        if kind not in _SHAPES or label in _NO_CLASS:
            findings.add("shape[s] that [is no box|are no boxes], left out", name)
        elif not label:
            findings.add(NO_CLASS, name)
        elif (corners := _corners(kind, shape.get("points"))) is None:
            findings.add(NO_BOX, name)
        else:
            found.append(Box(name=label, corners=corners))
    return tuple(found)


def _corners(kind: str, points: Any) -> tuple[float, float, float, float] | None:
    try:
        xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
        if kind == "circle":  # Its center, and a point on it.
            radius = math.dist((xs[0], ys[0]), (xs[1], ys[1]))
            return xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius
        return min(xs), min(ys), max(xs), max(ys)
    except (TypeError, ValueError, IndexError):
        return None
