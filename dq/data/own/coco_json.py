"""Write photographs with boxes as COCO files; images are named, not copied."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dq.data.formats.labelled import Labelled, Photo
from dq.whole_file import drafts


def coco_text(
    photos: Sequence[Photo],
    classes: Sequence[str],
    root: Path | None,
    info: Mapping[str, str],
) -> str:
    """Return the text of a COCO file.

    Args:
        photos: With their sizes.
        classes: Categories 1, 2, ... in this order.
        root: Images below it are named relative to it; the others, and all if it is None, with
            their whole path.
        info: The file's ``info``.
    """
    ids = {name: number for number, name in enumerate(classes, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, photo in enumerate(photos, 1):
        assert photo.size is not None
        below = root is not None and photo.file.is_relative_to(root)
        name = photo.file.relative_to(root) if root is not None and below else photo.file
        images.append({
            "id": number,
            "file_name": name.as_posix(),
            "width": photo.size[0],
            "height": photo.size[1],
        })  # fmt: skip
        for box in photo.boxes:
            x1, y1, x2, y2 = (round(value, 2) for value in box.corners)
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": ids[box.name],
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "area": round((x2 - x1) * (y2 - y1), 2),
                "iscrowd": int(box.ignored),
            })  # fmt: skip
    content = {
        "info": dict(info),
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


def by_split(labelled: Labelled) -> dict[str, str]:
    """Return the text of a COCO file for each split of a folder, ``all`` if it has none.

    Images are named with their whole path, so that the files work from anywhere.
    """
    parts: dict[str, list[Photo]] = {}
    for photo in labelled.photos:
        parts.setdefault(photo.split or "all", []).append(photo)
    info = {"description": f"converted from {labelled.format}: {labelled.folder}"}
    return {name: coco_text(photos, labelled.classes, None, info) for name, photos in parts.items()}


def refuse_existing(paths: Iterable[Path]) -> None:
    """Raise ValueError if one of these files exists."""
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ValueError(f"{path} exists; give --force to replace it, or another name")


def write_files(texts: Mapping[Path, str]) -> None:
    """Write several files whole, all of them or none; create their folders.

    Args:
        texts: The text of each file; those that exist are replaced.

    Raises:
        ValueError: A folder cannot be written.
    """
    try:
        for path in texts:
            path.parent.mkdir(parents=True, exist_ok=True)
        with drafts(*texts) as lent:
            for draft, text in zip(lent, texts.values(), strict=True):
                draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{error.filename or next(iter(texts))} cannot be written: {error.strerror}; choose"
            " another place"
        ) from error
