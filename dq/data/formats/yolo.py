"""YOLO: a text file for each image, one line per box in fractions of the image's sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dq.data.formats.folder import Folder
from dq.data.formats.labelled import Box, Findings, Labelled, Photo, class_names
from dq.data.pictures import Size, head_size

# Files with one class name per line; Darknet and Roboflow have the others.
NAME_FILES = ("classes.txt", "obj.names", "labels.names", "_darknet.labels", "classes.names")


def read(folder: Folder) -> Labelled | None:
    """Return the content of a folder with YOLO's labels; None if it has none."""
    findings = Findings()
    labels, orphans = _labels(folder)
    if not any(_rows(path) for path in labels.values()):
        return None
    settings = _settings(folder, findings)
    names = _names(folder, settings)
    splits = _splits(folder, settings)
    photos = []
    for image in folder.images:
        split = splits.get(image) or folder.split_of(image)
        if image not in labels:
            findings.add("images without a label file, taken as without objects",
                         folder.relative(image))  # fmt: skip
            photos.append(Photo(file=image, boxes=(), split=split))
            continue
        boxes = _boxes(labels[image], image, names, findings, folder.relative(labels[image]))
        photos.append(Photo(file=image, boxes=boxes, split=split))
    for path in orphans:
        findings.add("label files without an image", folder.relative(path))
    found = tuple(photos)
    return Labelled(
        format="yolo",
        folder=folder.root,
        photos=found,
        classes=class_names(found, names),
        findings=findings,
    )


def _labels(folder: Folder) -> tuple[dict[Path, Path], list[Path]]:
    """Return the label file of each image, and label files without an image."""
    found: dict[Path, Path] = {}
    orphans = []
    for path in folder.ending(".txt"):
        if path.name.lower() in NAME_FILES or "ImageSets" in path.parts:
            continue
        image, rows = folder.image_of(path), _rows(path)
        if rows is None:
            continue
        if image is not None:
            found.setdefault(image, path)
        elif rows:
            orphans.append(path)
    return found, orphans


def _rows(path: Path) -> list[list[float]] | None:
    """Return the numbers of each line; None if the file is no label file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = [[float(word) for word in line.split()] for line in lines if line.strip()]
    except (OSError, ValueError):
        return None
    return rows if all(len(row) >= 5 and row[0] == int(row[0]) for row in rows) else None


def _settings(folder: Folder, findings: Findings) -> tuple[Path, Mapping[str, Any]] | None:
    """Return the YAML file of the data set and its content: class names, folders of splits."""
    import yaml

    files = folder.ending(".yaml", ".yml")
    for path in sorted(files, key=lambda p: (p.stem.lower() != "data", len(p.parts), p)):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, yaml.YAMLError):
            findings.add("unreadable YAML files, left out", folder.relative(path))
            continue
        if isinstance(content, dict) and ("names" in content or "nc" in content):
            return path, content
    return None


def _names(folder: Folder, settings: tuple[Path, Mapping[str, Any]] | None) -> list[str]:
    """Return the class names by number; empty if no file has them."""
    given = settings[1].get("names") if settings else None
    if isinstance(given, dict):
        last = max((int(key) for key in given), default=-1)
        given = {int(key): value for key, value in given.items()}
        given = [given.get(number, number) for number in range(last + 1)]
    if isinstance(given, list) and given:
        return [" ".join(str(name).split()) for name in given]
    files = [path for path in folder.files if path.name.lower() in NAME_FILES]
    for path in sorted(files, key=lambda p: (len(p.parts), p)):
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        if names := [" ".join(line.split()) for line in lines if line.strip()]:
            return names
    return []


def _splits(folder: Folder, settings: tuple[Path, Mapping[str, Any]] | None) -> dict[Path, str]:
    """Return the split of each image that the YAML file or a list of images names."""
    found: dict[Path, str] = {}
    if settings is None:
        return found
    path, content = settings
    base = path.parent / str(content.get("path") or "")
    for key in ("train", "val", "test"):
        given = content.get(key)
        for entry in given if isinstance(given, list) else [given] if given else []:
            for image in _images_at(folder, (base, path.parent, folder.root), str(entry)):
                found.setdefault(image, key)
    return found


def _images_at(folder: Folder, bases: Sequence[Path], entry: str) -> list[Path]:
    """Return the images of a folder, or of a list of images, that the YAML file names."""
    inner = entry
    while inner.startswith(("../", "./")):  # Roboflow's paths begin one folder too high.
        inner = inner.partition("/")[2]
    for base in bases:
        for name in dict.fromkeys((entry, inner)):
            place = (base / name).resolve()
            place = folder.root / place.relative_to(folder.root.resolve()) if place.is_relative_to(
                folder.root.resolve()) else place  # fmt: skip
            if place.is_dir() and (images := folder.images_below(place)):
                return images
            if place.is_file() and place.suffix.lower() == ".txt":
                lines = place.read_text(encoding="utf-8-sig").splitlines()
                named = [folder.image_named(place, line.strip()) for line in lines if line.strip()]
                return [image for image in named if image is not None]
    return []


def _boxes(
    path: Path, image: Path, names: Sequence[str], findings: Findings, shown: str
) -> tuple[Box, ...]:
    size = head_size(image, turned=True)
    if size is None:  # The image cannot be read, which is found later.
        return ()
    found = []
    for number, *values in _rows(path) or ():
        label = int(number)
        if label < 0 or (names and label >= len(names)):
            findings.add("boxes of a class without a name, left out", shown)
            continue
        name = names[label] if names else str(label)
        found.append(Box(name=name, corners=_corners(values, size)))
    return tuple(found)


def _corners(values: Sequence[float], size: Size) -> tuple[float, float, float, float]:
    """Return the corners of a box, which may have a score, or of a polygon."""
    width, height = size
    if len(values) in (4, 5):
        x, y, w, h = values[:4]
        xs, ys = [x - w / 2, x + w / 2], [y - h / 2, y + h / 2]
    else:
        xs, ys = list(values[0::2]), list(values[1::2])
    return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height
