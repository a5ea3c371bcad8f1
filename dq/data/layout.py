"""The Pascal VOC layout on disk: paths of files, and the content of annotations.

A data set is a folder of `JPEGImages/<id>.jpg`, `Annotations/<id>.xml` and
`ImageSets/Main/<split>.txt`, which is what mmdet's `XMLDataset` reads.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "val", "trainval", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class VocBox:
    """One object and its pixel coordinates, counted from 1, both ends included."""

    name: str
    xmin: int
    ymin: int
    xmax: int
    ymax: int


def image_path(folder: Path, image_id: str) -> Path:
    """Return the path of an image by its id, which has no suffix."""
    return folder / "JPEGImages" / f"{image_id}.jpg"


def annotation_path(folder: Path, image_id: str) -> Path:
    """Return the path of the annotation of this id."""
    return folder / "Annotations" / f"{image_id}.xml"


def image_set_path(folder: Path, split: str) -> Path:
    """Return the path of the list of a split's images."""
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def write_image_set(folder: Path, split: str, image_ids: Iterable[str]) -> None:
    """Write the list of a split's images, one id per line."""
    text = "".join(f"{image_id}\n" for image_id in image_ids)
    image_set_path(folder, split).write_text(text, encoding="ascii", newline="\n")


def read_image_set(folder: Path, split: str) -> list[str] | None:
    """Return the ids of a split's images in order, or None if there is no such list."""
    path = image_set_path(folder, split)
    if not path.is_file():
        return None
    return path.read_text(encoding="utf-8").split()


def annotation_xml(
    image_id: str, size: tuple[int, int], boxes: Sequence[VocBox], *, database: str, source: str
) -> bytes:
    """Return the annotation of one colour image in VOC's format, always with the same bytes.

    Args:
        image_id: The image's name without its suffix.
        size: Width and height in pixels.
        boxes: The objects; none is difficult or truncated.
        database: The data set's name.
        source: Source of the background photograph.
    """
    root = ElementTree.Element("annotation")
    _add(root, "filename", f"{image_id}.jpg")
    origin = _add(root, "source")
    _add(origin, "database", database)
    _add(origin, "image", source)
    shape = _add(root, "size")
    for name, value in zip(("width", "height", "depth"), (*size, 3), strict=True):
        _add(shape, name, value)
    _add(root, "segmented", 0)
    for box in boxes:
        thing = _add(root, "object")
        _add(thing, "name", box.name)
        _add(thing, "pose", "Unspecified")
        _add(thing, "truncated", 0)
        _add(thing, "difficult", 0)
        corners = _add(thing, "bndbox")
        for side in ("xmin", "ymin", "xmax", "ymax"):
            _add(corners, side, getattr(box, side))
    ElementTree.indent(root)
    return f"{ElementTree.tostring(root, encoding='unicode')}\n".encode()


def read_boxes(path: Path) -> tuple[VocBox, ...]:
    """Return the objects of one annotation as mmdet reads them: fractions are truncated.

    Raises:
        ValueError: The file is not a VOC annotation.
        OSError: The file cannot be read.
    """
    try:
        root = ElementTree.parse(path).getroot()
        return tuple(_read_box(thing) for thing in root.iter("object"))
    except (ElementTree.ParseError, ValueError, OverflowError) as error:  # int(float("inf")) too
        raise ValueError(f"{path} is not a VOC annotation ({error}): write it again") from error


def _add(parent: ElementTree.Element, name: str, value: object = None) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, name)
    child.text = None if value is None else str(value)
    return child


def _read_box(thing: ElementTree.Element) -> VocBox:
    name = thing.findtext("name")
    if not name:
        raise ValueError("an object without a name")
    texts = [thing.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    xmin, ymin, xmax, ymax = (int(float(text or "")) for text in texts)
    return VocBox(name=name, xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
