"""The formats of labelled photographs, and which one a folder has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dq.counted import counted
from dq.data.formats import coco, labelme, voc, yolo
from dq.data.formats.folder import Folder, with_labels_above
from dq.data.formats.labelled import UNLISTED, UNREADABLE, Labelled
from dq.data.pictures import OTHERS, SUFFIXES
from dq.names import did_you_mean

# If two formats have equally many labelled images, the first of them is taken.
FORMATS: dict[str, Callable[[Folder], Labelled | None]] = {
    "voc": voc.read,
    "coco": coco.read,
    "yolo": yolo.read,
    "labelme": labelme.read,
}
# How people write them, where that differs.
TITLES = {
    "voc": "Pascal VOC",
    "coco": "COCO",
    "yolo": "YOLO",
    "labelme": "LabelMe",
}


def title(name: str) -> str:
    """Return the name of a format as people write it."""
    return TITLES.get(name, name)


def read_folder(place: Path, name: str | None = None) -> Labelled:
    """Return the content of a folder, in the format with most labelled images.

    Args:
        place: The folder.
        name: One of `FORMATS`; None finds it out.

    Raises:
        ValueError: There is no such folder or format, or there are no images, or no annotations.
    """
    if name is not None and name not in FORMATS:
        raise ValueError(f"--format {name} is not known{did_you_mean(name, FORMATS)}")
    folder = Folder(place)
    readers = FORMATS if name is None else {name: FORMATS[name]}
    read = [found for reader in readers.values() if (found := reader(folder)) is not None]
    others = folder.ending(*OTHERS)
    if not folder.images and not any(found.photos for found in read):
        if others:
            raise ValueError(
                f"{place} has {counted(len(others), 'image[s]')} of a kind that is not read,"
                f" such as {folder.relative(others[0])}; convert them to .jpg or .png"
            )
        if not read:
            raise ValueError(f"{place} has no images ({', '.join(SUFFIXES)}); give another folder")
    if not read:
        above = with_labels_above(folder.root)
        if above is not None:
            raise ValueError(
                f"{place} has {counted(len(folder.images), 'image[s]')} and no annotations; the"
                f" labels seem to be elsewhere in {above}: give that folder"
            )
        wanted = title(name) if name else ", ".join(map(title, FORMATS))
        raise ValueError(
            f"{place} has {counted(len(folder.images), 'image[s]')} and no annotations ({wanted}):"
            " label some first, or quantize a trained detector on images alone with `launcher"
            " quantize CONFIG --checkpoint FLOAT.pth --max-drop 1 --images DIR`"
        )
    best = max(read, key=lambda found: sum(bool(photo.boxes) for photo in found.photos))
    if not any(photo.boxes for photo in best.photos):
        reasons = "; ".join(best.findings.lines()[:2])
        raise ValueError(
            f"{place} has {title(best.format)} annotations, but no image with a box"
            f"{f': {reasons}' if reasons else ''}; correct them, or the paths in them"
        )
    for other in read:
        if other is not best and any(photo.boxes for photo in other.photos):
            best.findings.add(
                f"annotation[s] in a second format, not read (--format {other.format} reads"
                " [it|them])",
                title(other.format),
            )
    for name in folder.unreadable_names:
        best.findings.add("file[s] with a name that is not UTF-8, left out; rename [it|them]", name)
    for path in others:
        best.findings.add("image[s] of a kind that is not read, left out", folder.relative(path))
    _name_unlabelled(folder, best)
    return best


def _name_unlabelled(folder: Folder, labelled: Labelled) -> None:
    """Add to the findings the images that no annotation is about."""
    findings = labelled.findings
    # These have been named already.
    broken = [folder.image_of(folder.root / name) for name in findings.names.get(UNREADABLE, ())]
    known = {*(photo.file for photo in labelled.photos), *broken}
    skipped = set(findings.names.get(UNLISTED, ()))
    for image in folder.images:
        if image not in known and folder.relative(image) not in skipped:
            findings.add("image[s] without an annotation, left out", folder.relative(image))
