"""YOLO: a text file for each image, one line per box in fractions of the image's sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dq.data.formats.folder import LISTS, Folder
from dq.data.formats.labelled import (
    MISSING,
    TWO_SPLITS,
    UNREADABLE,
    Box,
    Findings,
    Labelled,
    Photo,
    class_names,
)
from dq.data.formats.texts import lines_in, lines_of, text_of
from dq.data.pictures import Size, head_size

# The numbers of each line of a label file; None if it is no label file.
Rows = Sequence[Sequence[float]] | None
# A class with a higher number can only be a mistake.
MOST_CLASSES = 100_000
# Files with one class name per line; Darknet and Roboflow have the others.
NAME_FILES = ("classes.txt", "obj.names", "labels.names", "_darknet.labels", "classes.names")


def read(folder: Folder) -> Labelled | None:
    """Return the content of a folder with YOLO's labels; None if it has none."""
    findings = Findings()
    labels, orphans = _labels(folder)
    if not labels:
        return None
    settings = _settings(folder, findings)
    names = _names(folder, settings)
    splits = _splits(folder, settings, findings)
    posed = bool(settings and settings[1].get("kpt_shape"))
    photos = []
    for image in folder.images:
        split = splits.get(image) or folder.split_of(image)
        if image not in labels:
            findings.add("image[s] without a label file, taken as without objects",
                         folder.relative(image))  # fmt: skip
            photos.append(Photo(file=image, boxes=(), split=split))
            continue
        path, rows = labels[image]
        shown = folder.relative(path)
        if rows is None:
            findings.add(UNREADABLE, shown)
            continue
        boxes = _boxes(rows, image, names, findings, shown, posed=posed)
        photos.append(Photo(file=image, boxes=boxes, split=split))
    for path in orphans:
        findings.add("label file[s] without an image", folder.relative(path))
    found = tuple(photos)
    return Labelled(
        format="yolo",
        folder=folder.root,
        photos=found,
        classes=class_names(found, names),
        findings=findings,
    )


def _labels(folder: Folder) -> tuple[dict[Path, tuple[Path, Rows]], list[Path]]:
    """Return the label file of each image with its rows, and label files without an image."""
    found: dict[Path, tuple[Path, Rows]] = {}
    orphans = []
    for path in folder.ending(".txt"):
        # Only folders below the root count: the root itself may be inside an ImageSets.
        inside = path.relative_to(folder.root).parts
        if path.name.lower() in NAME_FILES or LISTS in map(str.lower, inside):
            continue
        image, rows = folder.image_of(path), _rows(path)
        if image is not None:
            found.setdefault(image, (path, rows))
        elif rows:
            orphans.append(path)
    return found, orphans


def _rows(path: Path) -> Rows:
    """Return the numbers of each line; None if the file is no label file."""
    text = text_of(path)
    if text is None:
        return None
    try:
        rows = [[float(word) for word in line.split()] for line in lines_in(text)]
    except ValueError:
        return None
    return rows if all(len(row) >= 5 and row[0].is_integer() for row in rows) else None


def _settings(folder: Folder, findings: Findings) -> tuple[Path, Mapping[str, Any]] | None:
    """Return the YAML file of the data set and its content: class names, folders of splits."""
    import yaml

    files = folder.ending(".yaml", ".yml")
    for path in sorted(files, key=lambda p: (p.stem.lower() != "data", len(p.parts), p)):
        try:
            content = yaml.safe_load(text_of(path) or "")
        except (ValueError, RecursionError, yaml.YAMLError):
            findings.add("unreadable YAML file[s], left out", folder.relative(path))
            continue
        if isinstance(content, dict) and ("names" in content or "nc" in content):
            return path, content
    return None


def _names(folder: Folder, settings: tuple[Path, Mapping[str, Any]] | None) -> list[str]:
    """Return the class names by number; empty if no file has them."""
    file, content = settings or (folder.root, {})
    given = content.get("names")
    if isinstance(given, dict):
        given = _in_order(given, file)
    if isinstance(given, str):
        given = [name for name in given.split(",") if name.strip()]
    if isinstance(given, list) and given:
        return [" ".join(str(name).split()) for name in given]
    files = [path for path in folder.files if path.name.lower() in NAME_FILES]
    for path in sorted(files, key=lambda p: (len(p.parts), p)):
        if names := [" ".join(line.split()) for line in lines_of(path)]:
            return names
    return []


def _in_order(given: Mapping[Any, Any], file: Path) -> list[Any]:
    """Return names by number, from numbers with names or names with numbers.

    Raises:
        ValueError: There is neither, or a number is much too high.
    """
    try:
        try:
            named = {int(key): value for key, value in given.items()}
        except (TypeError, ValueError):
            named = {int(value): key for key, value in given.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`names` in {file} gives no numbers; write a list, or `0: cat` for each class"
        ) from error
    last = max(named, default=-1)
    if last > MOST_CLASSES:
        raise ValueError(f"`names` in {file} has class {last}; number the classes from 0")
    return [named.get(number, number) for number in range(last + 1)]


def _splits(
    folder: Folder, settings: tuple[Path, Mapping[str, Any]] | None, findings: Findings
) -> dict[Path, str]:
    """Return the split of each image that the YAML file or a list of images names."""
    found: dict[Path, str] = {}
    if settings is None:
        return found
    path, content = settings
    base = path.parent / str(content.get("path") or "")
    for key in ("train", "val", "test"):
        given = content.get(key)
        for entry in given if isinstance(given, list) else [given] if given else []:
            bases = (base, path.parent, folder.root)
            for image in _images_at(folder, bases, str(entry), findings):
                if found.setdefault(image, key) != key:
                    findings.add(TWO_SPLITS, folder.relative(image))
    return found


def _images_at(folder: Folder, bases: Sequence[Path], entry: str, findings: Findings) -> list[Path]:
    """Return the images of a folder, or of a list of images, that the YAML file names."""
    inner = entry
    while inner.startswith(("../", "./")):  # Roboflow's paths begin one folder too high.
        inner = inner.partition("/")[2]
    for base in bases:
        for name in dict.fromkeys((entry, inner)):
            try:
                place = (base / name).resolve()
                place.lstat()
            except (OSError, ValueError):  # Not there, or no possible name.
                continue
            place = folder.root / place.relative_to(folder.root.resolve()) if place.is_relative_to(
                folder.root.resolve()) else place  # fmt: skip
            if place.is_dir() and (images := folder.images_below(place)):
                return images
            if place.is_file() and place.suffix.lower() == ".txt":
                named = {line: folder.image_named(place, line) for line in lines_of(place)}
                for line in (line for line, image in named.items() if image is None):
                    findings.add(MISSING, line)
                return [image for image in named.values() if image is not None]
    return []


def _boxes(
    rows: Sequence[Sequence[float]],
    image: Path,
    names: Sequence[str],
    findings: Findings,
    shown: str,
    *,
    posed: bool,
) -> tuple[Box, ...]:
    size = head_size(image, turned=True)
    if size is None:  # The image cannot be read, which is found later.
        return ()
    found = []
    for number, *values in rows:
        label = int(number)
        if label < 0 or (names and label >= len(names)):
            findings.add("box[es] of a class without a name, left out", shown)
            continue
        name = names[label] if names else str(label)
        found.append(Box(name=name, corners=_corners(values, size, posed=posed)))
    return tuple(found)


def _corners(
    values: Sequence[float], size: Size, *, posed: bool
) -> tuple[float, float, float, float]:
    """Return the corners of a box, which may have a score or key points, or of a polygon."""
    width, height = size
    if posed or len(values) == 4 or len(values) % 2:
        x, y, w, h = values[:4]
        xs, ys = [x - w / 2, x + w / 2], [y - h / 2, y + h / 2]
    else:
        xs, ys = list(values[0::2]), list(values[1::2])
    return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height
