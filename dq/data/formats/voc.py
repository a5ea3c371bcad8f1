"""Pascal VOC: one XML file for each image, with or without lists of images."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

from dq.data.formats.folder import LISTS, Folder, comparable, split_named
from dq.data.formats.labelled import (
    MISSING,
    NO_BOX,
    NO_CLASS,
    NO_IMAGE,
    SECOND,
    TWO_SPLITS,
    UNLISTED,
    UNREADABLE,
    Box,
    Findings,
    Labelled,
    Photo,
    class_names,
    size_of,
)
from dq.data.formats.texts import lines_of, xml_of
from dq.data.pictures import SUFFIXES

# Ids and their splits, by the folder that holds the lists; ids of `_ids`.
Lists = Mapping[Path, Mapping[str, str]]


def read(folder: Folder) -> Labelled | None:
    """Return the content of a folder with VOC annotations; None if it has none."""
    findings = Findings()
    read = ((path, _root(path, findings, folder)) for path in folder.ending(".xml"))
    roots = {path: root for path, root in read if root is not None}
    if not roots:
        return None
    ids = _ids(folder)
    lists = _lists(folder, ids, findings)
    photos: dict[Path, Photo] = {}
    for path, root in roots.items():
        image = folder.image_of(path, root.findtext("filename") or "")
        if image is None:
            findings.add(NO_IMAGE, folder.relative(path))
        elif image in photos:
            findings.add(SECOND, folder.relative(path))
        elif (listed := _listed(path, lists)) is None:
            findings.add(UNLISTED, folder.relative(image))
        else:
            split = listed or folder.split_of(image) or folder.split_of(path)
            boxes = _boxes(root, folder.relative(path), findings)
            photos[image] = Photo(file=image, boxes=boxes, size=_size(root), split=split)
    found = tuple(photos[path] for path in sorted(photos))
    return Labelled(
        format="voc",
        folder=folder.root,
        photos=found,
        classes=class_names(found),
        findings=findings,
    )


def _root(path: Path, findings: Findings, folder: Folder) -> ElementTree.Element | None:
    root = xml_of(path)
    if root is None:
        findings.add(UNREADABLE, folder.relative(path))
        return None
    return root if root.tag == "annotation" else None


def _listed(path: Path, lists: Lists) -> str | None:
    """Return the split that an annotation is listed for.

    It is empty if no lists are about the annotation's folder, None if it is missing in those lists.
    """
    above = [base for base in lists if path.is_relative_to(base)]
    if len(lists) == 1:  # They may be in a folder of their own.
        above = list(lists)
    if not above:
        return ""
    nearest = max(above, key=lambda base: len(base.parts))
    listed = lists[nearest]
    return listed.get(_with_folder(path), listed.get(comparable(path.stem)))


def _ids(folder: Folder) -> set[str]:
    """Return the ids that lists may name: stems, and those of several annotations with a folder."""
    annotations = folder.ending(".xml")
    times = Counter(comparable(path.stem) for path in annotations)
    stems = {comparable(path.stem) for path in (*folder.images, *annotations)}
    return stems | {_with_folder(p) for p in annotations if times[comparable(p.stem)] > 1}


def _with_folder(path: Path) -> str:
    return f"{comparable(path.parent.name)}/{comparable(path.stem)}"


def _lists(folder: Folder, ids: set[str], findings: Findings) -> Lists:
    """Return the split of each image in ``ImageSets``; train and val come before trainval."""
    found: dict[Path, dict[str, str]] = {}
    named = {
        path: [part.lower() for part in path.relative_to(folder.root).parts]
        for path in folder.ending(".txt")
    }
    lists = [path for path, parts in named.items() if LISTS in parts]
    for path in sorted(lists, key=lambda p: split_named(p.stem) == "trainval"):
        split = split_named(path.stem)
        if split is None:  # Lists of one class, such as aeroplane_train.txt.
            continue
        base = folder.root.joinpath(
            *path.relative_to(folder.root).parts[: named[path].index(LISTS)]
        )
        for line in lines_of(path):
            name = _id(line, ids)
            if name not in ids:
                findings.add(MISSING, line)
                continue
            first = found.setdefault(base, {}).setdefault(name, split)
            if split != first and (split != "trainval" or first == "test"):
                findings.add(TWO_SPLITS, line)
    return found


def _id(line: str, ids: set[str]) -> str:
    """Return the id that a line of a list means, as `comparable` has it.

    An id may contain spaces; some tools write paths of images instead, or a number after the id. If
    images in several folders have the name, the folder in the line says which of them is meant.
    """
    path = PureWindowsPath(line)
    name = path.name
    if name.lower().endswith(SUFFIXES):
        name = name.rpartition(".")[0]
    if comparable(name) not in ids:
        name = re.sub(r"\s+-?[01]$", "", name)
    inside = f"{comparable(path.parent.name)}/{comparable(name)}"
    return inside if inside in ids else comparable(name)


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    return size_of(root.findtext("size/width"), root.findtext("size/height"))


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
        ignored = (thing.findtext("difficult") or "").strip().lower() in ("1", "true")
        x1, y1, x2, y2 = sides
        found.append(Box(name=label, corners=(x1, y1, x2, y2), ignored=ignored))
    return tuple(found)


_SIDES = ("xmin", "ymin", "xmax", "ymax")
