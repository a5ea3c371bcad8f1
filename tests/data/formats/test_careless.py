"""Folders as careless people and other tools leave them: read all the same, or named in a line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dq.data.formats.labelled import size_of
from dq.data.formats.registry import read_folder
from dq.data.own.checked import checked
from dq.data.own.splits import share_out
from dq.data.pictures import can_train, head_size
from tests.data import folders
from tests.data.folders import CLASSES, LAYOUTS, SIZE, paint, put, scenes, xml
from tests.data.formats.test_layouts import TRUTH, content

Spoil = Callable[[Path], object]


def every(pattern: str, change: Callable[[str], str], encoding: str = "utf-8") -> Spoil:
    def spoil(folder: Path) -> None:
        found = list(folder.rglob(pattern))
        assert found
        for path in found:
            text = path.read_text(encoding="utf-8")
            changed = change(text)
            assert changed != text or encoding != "utf-8"
            path.write_bytes(changed.encode(encoding))

    return spoil


def sub(pattern: str, by: str) -> Callable[[str], str]:
    return lambda text: re.sub(pattern, by, text, flags=re.DOTALL)


def json_of(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def edit(text: str) -> str:
        whole = json.loads(text)
        change(whole)
        return json.dumps(whole)

    return every("*.json", edit)


def set_all(part: str, key: str, value: Callable[[Any], object]) -> Spoil:
    def change(whole: dict[str, Any]) -> None:
        for entry in whole[part]:
            entry[key] = value(entry[key])

    return json_of(change)


def moved(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).rename(folder / name.lower())


def annotations_in_root(folder: Path) -> None:
    for path in (folder / "annotations").iterdir():
        path.rename(folder / path.name)


def declared(encoding: str) -> Callable[[str], str]:
    return lambda text: f"<?xml version='1.0' encoding='{encoding}'?>\n{text}"


def with_poses(folder: Path) -> None:
    points = " 0.1 0.1 2 0.9 0.9 2\n"
    every("photo*.txt", lambda text: text.replace("\n", points))(folder)
    with (folder / "things.yaml").open("a") as file:
        file.write("kpt_shape: [2, 3]\n")


LISTS = "Main/[tv]*.txt"
NAMES = r"names:.*"
LONG, ODD = f"path: {'a' * 500}", "train: {a: 1}"
# Read as if nothing were odd.
READ: dict[str, tuple[str, Spoil]] = {
    "xml without a size": ("voc", every("*.xml", sub("<size>.*</size>", ""))),
    "xml of no width": ("voc", every("*.xml", sub(r"<width>\d+", "<width>0"))),
    "xml of infinite width": ("voc", every("*.xml", sub(r"<width>\d+", "<width>inf"))),
    "xml of width nan": ("voc", every("*.xml", sub(r"<width>\d+", "<width>nan"))),
    "xml without difficult": ("voc", every("*.xml", sub("<difficult>0</difficult>", ""))),
    "xml in latin-1": ("voc", every("*.xml", str, "latin-1")),
    "xml in gb18030": ("voc", every("*.xml", declared("gb18030"), "gb18030")),
    "xml in utf-16": ("voc", every("*.xml", declared("utf-16"), "utf-16")),
    "xml with a mark": ("voc", every("*.xml", str, "utf-8-sig")),
    "lists with blank lines": ("voc", every(LISTS, sub("\n", "\r\n \r\n"), "utf-8-sig")),
    "lists with suffixes": ("voc", every(LISTS, sub(r"(photo \d)", r"\1.JPG"))),
    "lists with Windows' paths": ("voc", every(LISTS, sub(r"(photo \d)", r"C:\\a\\\1.jpg"))),
    "lists in capitals": ("voc", every(LISTS, str.upper)),
    "lists in utf-16": ("voc", every(LISTS, str, "utf-16")),
    "lists with numbers": ("voc", every(LISTS, sub(r"(photo \d)", r"\1  1"))),
    "folders in small letters": (
        "voc",
        lambda d: moved(d, "JPEGImages", "Annotations", "ImageSets"),
    ),
    "coco in the root": ("coco", annotations_in_root),
    "coco with ids as text": ("coco", set_all("images", "id", str)),
    "coco with ids as floats": ("coco", set_all("annotations", "image_id", float)),
    "coco with classes as text": ("coco", set_all("annotations", "category_id", str)),
    "coco of infinite width": ("coco", set_all("images", "width", lambda _: float("inf"))),
    "coco of width as text": ("coco", set_all("images", "width", str)),
    "coco of key points": (
        "coco",
        lambda d: [
            path.rename(path.with_name(path.name.replace("instances", "person_keypoints")))
            for path in (d / "annotations").iterdir()
        ],
    ),
    "yolo with numbers by name": (
        "yolo_by_kind",
        every("*.yaml", sub(NAMES, "names: {red thing: 0, grün: 1, blue: 2}")),
    ),
    "yolo with names in a line": (
        "yolo_by_kind",
        every("*.yaml", sub(NAMES, "names: red thing, grün, blue")),
    ),
    "yolo with a path elsewhere": ("yolo_by_kind", every("*.yaml", sub("path: .", "path: /a/b"))),
    "yolo with a long path": ("yolo_by_kind", every("*.yaml", sub("path: .", LONG))),
    "yolo with odd splits": ("yolo_by_kind", every("*.yaml", sub("train: [^\n]*", ODD))),
    "yolo with key points": ("yolo_by_kind", with_poses),
    "yaml in latin-1": ("yolo_by_kind", every("*.yaml", str, "latin-1")),
    "classes in latin-1": ("yolo_flat", every("classes.txt", str, "latin-1")),
    "labelme of width as text": ("labelme_beside", every("*.json", sub(r": 96", ': "96"'))),
    "pictures of show": (
        "yolo_flat",
        lambda d: [
            paint(scenes()[0], d / "runs/show/train/a.png"),
            *(put(d / f"runs/show/train/{name}", "{}") for name in ("show.json", "index.html")),
        ],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_only_unusual_is_read(tmp_path: Path, name: str) -> None:
    layout, spoil = READ[name]
    LAYOUTS[layout][0](tmp_path)
    spoil(tmp_path)
    found = checked(read_folder(tmp_path))
    assert found.findings.lines() == []
    assert content(found) == TRUTH
    splits = {photo.split for photo in found.photos}
    assert splits == ({"train", "val"} if LAYOUTS[layout][2] else {None})


def save_as(kind: str, mode: str = "RGB") -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "JPEGImages/photo 1.jpg"
        Image.open(path).convert(mode).save(path, kind)

    return spoil


def rename_bytes(folder: Path) -> None:
    for suffix in (b".jpg", b".txt"):
        os.rename(folder / f"photo 1{suffix.decode()}", os.fsencode(folder) + b"/\xff" + suffix)


LINES: dict[str, tuple[str, Spoil, str]] = {
    "corners exchanged": (
        "voc",
        lambda d: put(
            d / "Annotations/photo 1.xml",
            xml(scenes()[1]).replace("xmin", "?").replace("xmax", "xmin").replace("?", "xmax"),
        ),
        "2 boxes with their corners exchanged, put right (first JPEGImages/photo 1.jpg)",
    ),
    "less than a pixel": (
        "yolo_flat",
        lambda d: put(d / "photo 1.txt", "0 0.5 0.5 0.001 0.5\n"),
        "1 box of less than a pixel, left out (photo 1.jpg)",
    ),
    "a small image": (
        "voc",
        lambda d: Image.new("RGB", (24, 16)).save(d / "JPEGImages/photo 1.jpg"),
        "1 image of less than 32 pixels, left out (JPEGImages/photo 1.jpg)",
    ),
    "an icon with the wrong suffix": (
        "voc",
        save_as("ICO"),
        "1 unreadable image, left out (JPEGImages/photo 1.jpg)",
    ),
    "a document with the wrong suffix": (
        "voc",
        save_as("PDF"),
        "1 unreadable image, left out (JPEGImages/photo 1.jpg)",
    ),
    "a TIFF of real numbers": (
        "voc",
        lambda d: save_as("TIFF", "F")(d),
        "1 unreadable image, left out (JPEGImages/photo 1.jpg)",
    ),
    "another kind of image": (
        "voc_in_one_folder",
        lambda d: (d / "photo 1.png").rename(d / "photo 1.gif") and (d / "photo 1.xml").unlink(),
        "1 image of a kind that is not read, left out (photo 1.gif)",
    ),
    "a label cut": (
        "yolo_flat",
        lambda d: put(d / "photo 1.txt", "0 0.5 0.5\n"),
        "1 unreadable annotation, left out (photo 1.txt)",
    ),
    "an infinite class": (
        "yolo_flat",
        lambda d: put(d / "photo 1.txt", "inf 0.5 0.5 0.1 0.1\n"),
        "1 unreadable annotation, left out (photo 1.txt)",
    ),
    "a list that names too much": (
        "yolo_lists",
        lambda d: (d / "train.txt").open("a").write("\nobj_data/none.jpg\n"),
        "1 listed image that is missing, left out (obj_data/none.jpg)",
    ),
    "bytes that are no name": (
        "yolo_flat",
        rename_bytes,
        "2 files with a name that is not UTF-8, left out; rename them"
        r" (first \udcff.jpg, \udcff.txt)",
    ),
    "a long name": (
        "coco",
        lambda d: json_of(lambda c: c["images"].append({"id": 99, "file_name": "a" * 600}))(d),
        f"2 listed images that are missing, left out (first ...{'a' * 60})",
    ),
    "ids that are lists": (
        "coco",
        lambda d: json_of(
            lambda c: c["annotations"].append(
                {"image_id": [7], "category_id": {}, "bbox": [1, 1, 9, 9]}
            )
        )(d),
        "2 boxes of an image that is not listed, left out"
        " (first annotations/instances_train2017.json, annotations/instances_val2017.json)",
    ),
    "two VOC lists": (
        "voc",
        lambda d: (d / "ImageSets/Main/val.txt").open("a").write("photo 1\n"),
        "1 image in two splits, left out of the second (photo 1)",
    ),
    "two YOLO lists": (
        "yolo_lists",
        lambda d: (d / "valid.txt").open("a").write("\nobj_data/photo 1.jpg\n"),
        "1 image in two splits, left out of the second (obj_data/photo 1.jpg)",
    ),
    "two COCO files": (
        "coco",
        lambda d: put(
            d / "annotations/instances_test2017.json",
            folders.coco(scenes()[1:2], lambda s: f"../train2017/{s.stem}.jpg"),
        ),
        "1 image in two splits, left out of the second (train2017/photo 1.jpg)",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_what_is_wrong_is_one_line(tmp_path: Path, name: str) -> None:
    layout, spoil, line = LINES[name]
    LAYOUTS[layout][0](tmp_path)
    spoil(tmp_path)
    found = checked(read_folder(tmp_path))
    assert found.findings.lines() == [line]
    rest = {k: v for k, v in content(found).items() if k != "photo 1"}
    assert rest == {k: v for k, v in TRUTH.items() if k != "photo 1"}


ENDS: dict[str, tuple[str, Spoil, str]] = {
    "a class too far": (
        "yolo_by_kind",
        every("*.yaml", sub(NAMES, "names: {0: a, 999999999: b}")),
        "has class 999999999; number the classes from 0",
    ),
    "names without numbers": (
        "yolo_by_kind",
        every("*.yaml", sub(NAMES, "names: {a: b}")),
        "gives no numbers; write a list",
    ),
    "labels with commas": (
        "yolo_flat",
        every("photo*.txt", sub(" ", ",")),
        "no image with a box: 10 unreadable annotations",
    ),
    "labels with names": (
        "yolo_flat",
        every("photo*.txt", sub("(^|\n)[0-9]", r"\1cat")),
        "no image with a box: 10 unreadable annotations",
    ),
    "nothing in the labels": (
        "yolo_flat",
        every("photo*.txt", lambda _: ""),
        "has YOLO annotations, but no image with a box; correct them",
    ),
    "gifs": (
        "voc_in_one_folder",
        lambda d: [p.rename(p.with_suffix(".gif")) for p in d.glob("*.png")],
        "has 10 images of a kind that is not read, such as photo 0.gif; convert them",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_cannot_be_read_ends_in_a_line(tmp_path: Path, name: str) -> None:
    layout, spoil, words = ENDS[name]
    LAYOUTS[layout][0](tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        read_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "part"),
    [
        ("voc", "JPEGImages"),
        ("coco", "train2017"),
        ("yolo_by_kind", "images"),
        ("yolo_by_kind", "images/train"),
        ("labelme_apart", "train/imgs"),
    ],
)
def test_the_folder_of_the_images_alone_names_the_one_above(
    tmp_path: Path, layout: str, part: str
) -> None:
    LAYOUTS[layout][0](tmp_path / "data")
    with pytest.raises(ValueError, match=r"elsewhere in .*/data(/train)?: give that folder"):
        read_folder(tmp_path / "data" / part)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_boxes_is_not_evaluated(tmp_path: Path, split: str) -> None:
    folders.yolo_by_kind(tmp_path)
    for number in range(3):
        paint(scenes()[number], tmp_path / f"images/test/t{number}.jpg")
        put(tmp_path / f"labels/test/t{number}.txt", "0 0.5 0.5 0.3 0.3\n")
    for path in (tmp_path / f"labels/{split}").iterdir():
        path.write_text("")
    found = share_out(checked(read_folder(tmp_path)))
    assert list(found.photos) == ["train", "val"]
    assert f"{split} without a box left out" in found.said
    assert all(any(photo.boxes for photo in some) for some in found.photos.values())


def test_lists_hold_for_their_own_folder(tmp_path: Path) -> None:
    """Two years of VOC may have the same ids in other splits."""
    folders.voc(tmp_path / "VOC1")
    folders.voc(tmp_path / "VOC2")
    folders.voc_by_split(tmp_path / "more")
    train, val = (tmp_path / f"VOC2/ImageSets/Main/{name}.txt" for name in ("train", "val"))
    ids = train.read_text()
    put(train, val.read_text())
    put(val, ids)
    found = read_folder(tmp_path)
    assert found.findings.lines() == []
    first, second, third = (
        [photo.split for photo in found.photos if name in photo.file.parts]
        for name in ("VOC1", "VOC2", "more")
    )
    assert first == third == ["train"] * 7 + ["val"] * 3
    assert second == ["val"] * 7 + ["train"] * 3


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(m, ".png") for m in ("L", "LA", "P", "RGBA", "1")]
    + [("CMYK", ".jpg"), ("I;16", ".png"), ("RGB", ".webp"), ("RGB", ".BMP")],
)
def test_images_of_every_mode_are_read_and_trained(tmp_path: Path, mode: str, suffix: str) -> None:
    """What passes the check is what mmcv makes three channels of."""
    import mmcv

    folders.voc_in_one_folder(tmp_path)
    path = tmp_path / "photo 1.png"
    image = Image.open(path)
    path.unlink()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256)
    else:
        image = image.convert(mode)
    image.save(path.with_suffix(suffix))
    found = checked(read_folder(tmp_path))
    assert found.findings.lines() == []
    assert content(found) == TRUTH
    pixels = mmcv.imread(str(path.with_suffix(suffix)))
    assert pixels.shape == (SIZE[1], SIZE[0], 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("tag", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_turned_images_of_every_kind_have_the_size_that_mmcv_loads(
    tmp_path: Path, suffix: str, tag: int
) -> None:
    import mmcv

    image = Image.new("RGB", SIZE)
    exif = image.getexif()
    exif[0x0112] = tag
    path = tmp_path / f"a{suffix}"
    image.save(path, exif=exif if suffix == ".tif" else exif.tobytes())
    height, width, _ = mmcv.imfrombytes(path.read_bytes()).shape
    assert head_size(path, turned=True) == (width, height)
    assert head_size(path, turned=False) == SIZE
    assert can_train(path)


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        ((96, "64"), (96, 64)),
        ((96.0, "64.0"), (96, 64)),
        ((0, 64), None),
        ((-1, 64), None),
        ((None, 64), None),
        ((float("inf"), 64), None),
        (("nan", 64), None),
        (([96], 64), None),
        (("wide", 64), None),
    ],
)
def test_sizes_are_sides_of_an_image(sides: tuple[Any, Any], size: Any) -> None:
    assert size_of(*sides) == size


def test_classes_are_those_of_the_layouts() -> None:
    assert {name for boxes in TRUTH.values() for name, *_ in boxes} == set(CLASSES)


@pytest.mark.parametrize("ending", ["", ".jpg", " 1"])
@pytest.mark.parametrize("prefix", ["", "JPEGImages/", "C:\\set\\", "./"])
def test_voc_lists_with_folders_tell_images_of_one_name_apart(
    tmp_path: Path, prefix: str, ending: str
) -> None:
    """Cameras number their images alike: day/1 trains, night/1 validates, and 2 is there once."""
    some = scenes(4)
    for scene, name in zip(some, ("day/1", "night/1", "night/2", "dusk/1"), strict=True):
        paint(scene, tmp_path / f"JPEGImages/{name}.jpg")
        put(tmp_path / f"Annotations/{name}.xml", xml(scene, f"{name}.jpg"))
    lists = {"train": ["day/1", "night/2"], "val": ["night/1"]}
    for split, names in lists.items():
        lines = [f"{prefix}{name}{ending}" for name in names]
        put(tmp_path / f"ImageSets/Main/{split}.txt", "\n".join(lines))
    found = read_folder(tmp_path)
    splits = {photo.file.relative_to(tmp_path / "JPEGImages").as_posix(): photo.split
              for photo in found.photos}  # fmt: skip
    assert splits == {"day/1.jpg": "train", "night/1.jpg": "val", "night/2.jpg": "train"}
    assert found.findings.lines() == [
        "1 image in no list of ImageSets, left out (JPEGImages/dusk/1.jpg)"
    ]
