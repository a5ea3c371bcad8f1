"""Pascal VOC: one XML file for each image, with or without lists of images."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path, PurePosixPath

from dq.data.formats.folder import Folder, split_named
from dq.data.formats.labelled import (
    MISSING,
    NO_BOX,
    NO_CLASS,
    NO_IMAGE,
    SECOND,
    UNLISTED,
    UNREADABLE,
    Box,
    Findings,
    Labelled,
    Photo,
    class_names,
)
from dq.data.pictures import SUFFIXES

LISTS = "ImageSets"


def read(folder: Folder) -> Labelled | None:
    """Return the content of a folder with VOC annotations; None if it has none."""
    findings = Findings()
    read = ((path, _root(path, findings, folder)) for path in folder.ending(".xml"))
    roots = {path: root for path, root in read if root is not None}
    if not roots:
        return None
    lists = _lists(folder)
    photos: dict[Path, Photo] = {}
    for path, root in roots.items():
        image = folder.image_of(path, root.findtext("filename") or "")
        if image is None:
            findings.add(NO_IMAGE, folder.relative(path))
        elif image in photos:
            findings.add(SECOND, folder.relative(path))
        elif lists and path.stem not in lists:
            findings.add(UNLISTED, folder.relative(image))
        else:
            split = lists.get(path.stem) or folder.split_of(image) or folder.split_of(path)
            boxes = _boxes(root, folder.relative(path), findings)
            photos[image] = Photo(file=image, boxes=boxes, size=_size(root), split=split)
    there = {path.stem for path in (*folder.images, *folder.ending(".xml"))}
    for stem in sorted(set(lists) - there):
        findings.add(MISSING, stem)
    found = tuple(photos[path] for path in sorted(photos))
    return Labelled(
        format="voc",
        folder=folder.root,
        photos=found,
        classes=class_names(found),
        findings=findings,
    )


def _root(path: Path, findings: Findings, folder: Folder) -> ElementTree.Element | None:
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError, ValueError):
        findings.add(UNREADABLE, folder.relative(path))
        return None
    return root if root.tag == "annotation" else None


def _lists(folder: Folder) -> dict[str, str]:
    """Return the split of each image id in ``ImageSets``; train and val come before trainval."""
    found: dict[str, str] = {}
    lists = [p for p in folder.ending(".txt") if LISTS in p.relative_to(folder.root).parts]
    for path in sorted(lists, key=lambda p: split_named(p.stem) == "trainval"):
        split = split_named(path.stem)
        if split is None:  # Lists of one class, such as aeroplane_train.txt.
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            # An id may contain spaces; some tools write paths of images instead.
            name = PurePosixPath(line.strip())
            if line.strip():
                found.setdefault(name.stem if name.suffix.lower() in SUFFIXES else str(name), split)
    return found


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(root.findtext(f"size/{s}") or 0)) for s in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None


def _boxes(root: ElementTree.Element, name: str, findings: Findings) -> tuple[Box, ...]:
    found = []
    for thing in root.iter("object"):
        label = " ".join((thing.findtext("name") or "").split())
        try:
            sides = [float(thing.findtext(f"bndbox/{side}") or "") for side in _SIDES]
        except ValueError:
            findings.add(NO_BOX, name)
            continue
        if not label:
            findings.add(NO_CLASS, name)
            continue
        ignored = (thing.findtext("difficult") or "0").strip() == "1"
        x1, y1, x2, y2 = sides
        found.append(Box(name=label, corners=(x1, y1, x2, y2), ignored=ignored))
    return tuple(found)


_SIDES = ("xmin", "ymin", "xmax", "ymax")
