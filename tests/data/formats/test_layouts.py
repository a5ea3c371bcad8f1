"""The same scenes in every format and layout are read as the same boxes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dq.data.formats.labelled import Labelled
from dq.data.formats.registry import FORMATS, TITLES, read_folder
from dq.data.own.checked import checked
from dq.data.own.coco_json import by_split, write_files
from tests.data import folders
from tests.data.folders import CLASSES, LAYOUTS, paint, put, scenes, txt, xml


def content(labelled: Labelled) -> dict[str, list[tuple[object, ...]]]:
    return {
        photo.file.stem: [(box.name, *map(round, box.corners)) for box in photo.boxes]
        for photo in labelled.photos
    }


TRUTH = {scene.stem: [(CLASSES[b[0]], *b[1:]) for b in scene.boxes] for scene in scenes()}


def test_every_format_has_layouts() -> None:
    assert {name for _, name, _ in LAYOUTS.values()} == set(FORMATS) == set(TITLES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognized_and_read(tmp_path: Path, layout: str) -> None:
    write, name, has_splits = LAYOUTS[layout]
    write(tmp_path)
    found = checked(read_folder(tmp_path))
    assert found.findings.lines() == []
    assert found.format == name
    assert content(found) == TRUTH
    assert set(found.classes) == set(CLASSES)
    if name in ("coco", "yolo"):
        assert found.classes == CLASSES
    splits = {photo.split for photo in found.photos}
    assert splits == ({"train", "val"} if has_splits else {None})
    assert sum(photo.split == "train" for photo in found.photos) == (7 if has_splits else 0)


def test_the_name_of_a_folder_above_does_not_matter(tmp_path: Path) -> None:
    for layout in ("voc", "yolo_flat"):
        place = tmp_path / "ImageSets" / layout
        LAYOUTS[layout][0](place)
        assert content(checked(read_folder(place))) == TRUTH


@pytest.mark.parametrize("layout", LAYOUTS)
def test_converted_files_say_the_same_from_anywhere(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout][0](tmp_path / "src")
    found = checked(read_folder(tmp_path / "src"))
    files = {tmp_path / f"dst/instances_{n}.json": text for n, text in by_split(found).items()}
    write_files(files)
    again = checked(read_folder(tmp_path / "dst"))
    assert again.findings.lines() == []
    assert content(again) == TRUTH
    assert again.classes == found.classes
    assert [p.split for p in again.photos] == [p.split or None for p in found.photos]


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "image cut": (
        "voc",
        lambda d: (d / "JPEGImages/photo 1.jpg").write_bytes(b"\xff\xd8\xff"),
        "1 unreadable image, left out (JPEGImages/photo 1.jpg)",
    ),
    "image of text": (
        "yolo_flat",
        lambda d: (d / "photo 1.jpg").write_text("<html>"),
        "1 unreadable image, left out (photo 1.jpg)",
    ),
    "image without annotation": (
        "voc_in_one_folder",
        lambda d: (d / "photo 1.xml").unlink(),
        "1 image without an annotation, left out (photo 1.png)",
    ),
    "annotation without image": (
        "voc_in_one_folder",
        lambda d: (d / "photo 1.png").unlink(),
        "1 annotation without an image (photo 1.xml)",
    ),
    "labels without image": (
        "yolo_flat",
        lambda d: (d / "photo 1.jpg").unlink(),
        "1 label file without an image (photo 1.txt)",
    ),
    "listed image missing": (
        "coco",
        lambda d: (d / "train2017/photo 1.jpg").unlink(),
        "1 listed image that is missing, left out (photo 1.jpg)",
    ),
    "json without image": (
        "labelme_beside",
        lambda d: (d / "photo 1.jpg").unlink(),
        "1 annotation without an image (photo 1.json)",
    ),
    "no label file": (
        "yolo_flat",
        lambda d: (d / "photo 1.txt").unlink(),
        "1 image without a label file, taken as without objects (photo 1.jpg)",
    ),
    "xml cut": (
        "voc",
        lambda d: put(d / "Annotations/photo 1.xml", "<annotation><obj"),
        "1 unreadable annotation, left out (Annotations/photo 1.xml)",
    ),
    "json cut": (
        "labelme_beside",
        lambda d: put(d / "photo 1.json", '{"shapes": ['),
        "1 unreadable annotation, left out (photo 1.json)",
    ),
    "outside": (
        "yolo_flat",
        lambda d: put(d / "photo 1.txt", "0 1.5 0.5 0.1 0.1\n"),
        "1 box outside its image, left out (photo 1.jpg)",
    ),
    "clipped": (
        "yolo_flat",
        lambda d: put(d / "photo 1.txt", "0 0.95 0.5 0.3 0.1\n"),
        "1 box partly outside its image, clipped (photo 1.jpg)",
    ),
    "zero size": (
        "yolo_flat",
        lambda d: put(d / "photo 1.txt", "0 0.5 0.5 0.0 0.1\n"),
        "1 box of zero size, left out (photo 1.jpg)",
    ),
    "not a number": (
        "yolo_flat",
        lambda d: put(d / "photo 1.txt", "0 nan 0.5 0.1 0.1\n"),
        "1 box without numbers, left out (photo 1.jpg)",
    ),
    "twice": (
        "yolo_flat",
        lambda d: put(d / "photo 1.txt", "0 0.5 0.5 0.1 0.1\n" * 2),
        "1 box that is there twice, left out (photo 1.jpg)",
    ),
    "class without a name": (
        "yolo_flat",
        lambda d: put(d / "photo 1.txt", "7 0.5 0.5 0.1 0.1\n"),
        "1 box of a class without a name, left out (photo 1.txt)",
    ),
    "shapes that are points": (
        "labelme_beside",
        lambda d: put(
            d / "photo 1.json",
            json.dumps({"shapes": [{"label": "a", "points": [[1, 1]], "shape_type": "point"}]}),
        ),
        "1 shape that is no box, left out (photo 1.json)",
    ),
    "no box": (
        "voc",
        lambda d: put(
            d / "Annotations/photo 1.xml",
            "<annotation><object><name>a</name></object></annotation>",
        ),
        "1 object without a box, left out (Annotations/photo 1.xml)",
    ),
    "listed without annotation and with image": (
        "voc",
        lambda d: (d / "Annotations/photo 1.xml").unlink(),
        "1 image without an annotation, left out (JPEGImages/photo 1.jpg)",
    ),
    "in no list": (
        "voc",
        lambda d: put(d / "ImageSets/Main/val.txt", "photo 7\nphoto 8\n"),
        "1 image in no list of ImageSets, left out (JPEGImages/photo 9.jpg)",
    ),
    "listed and not there": (
        "voc",
        lambda d: put(d / "ImageSets/Main/val.txt", "photo 7\nphoto 8\nphoto 9\nphoto 10\n"),
        "1 listed image that is missing, left out (photo 10)",
    ),
    "two formats": (
        "voc_in_one_folder",
        lambda d: put(d / "photo 1.txt", "0 0.5 0.5 0.1 0.1\n"),
        "1 annotation in a second format, not read (--format yolo reads it) (YOLO)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_counted_and_named(tmp_path: Path, fault: str) -> None:
    layout, spoil, line = FAULTS[fault]
    LAYOUTS[layout][0](tmp_path)
    spoil(tmp_path)
    found = checked(read_folder(tmp_path))
    assert found.findings.lines() == [line]
    # All others are as before.
    rest = {k: v for k, v in content(found).items() if k not in ("photo 1", "photo 9")}
    assert rest == {k: v for k, v in TRUTH.items() if k not in ("photo 1", "photo 9")}


@pytest.mark.parametrize("tag", [1, 3, 5, 6, 7, 8])
def test_boxes_turn_with_their_image(tmp_path: Path, tag: int) -> None:
    """Boxes made before the EXIF orientation is applied are where the colours are afterwards."""
    import cv2

    folders.labelme_beside(tmp_path)
    for scene in scenes():
        path = tmp_path / f"{scene.stem}.jpg"
        image = Image.open(path)
        exif = image.getexif()
        exif[0x0112] = tag
        image.save(path, exif=exif, quality=95, subsampling=0)
    found = checked(read_folder(tmp_path))
    turned = tag in (5, 6, 7, 8)
    assert bool(found.findings.lines()) == turned
    if not turned:  # An annotation does not say whether a mirrored photo was meant.
        assert content(found) == TRUTH
        return
    for photo in found.photos:
        pixels = cv2.imread(str(photo.file))[..., ::-1]
        assert photo.size == (pixels.shape[1], pixels.shape[0]) == folders.SIZE[::-1]
        for box in photo.boxes:
            x1, y1, x2, y2 = map(round, box.corners)
            colour = folders.COLOURS[CLASSES.index(box.name)]
            inside = pixels[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].reshape(-1, 3)
            assert abs(inside.mean(axis=0) - colour).max() < 20


def test_boxes_scale_with_their_image(tmp_path: Path) -> None:
    folders.voc(tmp_path)
    path = tmp_path / "JPEGImages/photo 1.jpg"
    Image.open(path).resize((192, 128)).save(path)
    found = checked(read_folder(tmp_path))
    assert content(found)["photo 1"] == [
        (name, *(2 * int(str(v)) for v in corners)) for name, *corners in TRUTH["photo 1"]
    ]
    Image.open(path).resize((40, 128)).save(path)
    found = checked(read_folder(tmp_path))
    assert "photo 1" not in content(found)
    assert "1 image whose boxes are for another size" in found.findings.lines()[0]


def test_polygons_and_scores_of_yolo_are_boxes(tmp_path: Path) -> None:
    folders.yolo_flat(tmp_path)
    put(tmp_path / "photo 1.txt", "1 0.25 0.25 0.75 0.25 0.5 0.75\n2 0.5 0.5 0.5 0.5 0.99\n\n")
    found = content(checked(read_folder(tmp_path)))
    assert found["photo 1"] == [("grün", 24, 16, 72, 48), ("blue", 24, 16, 72, 48)]


def test_circles_and_polygons_of_labelme_are_boxes(tmp_path: Path) -> None:
    folders.labelme_beside(tmp_path)
    shapes = [
        {"label": " grün ", "points": [[40, 30], [40, 20]], "shape_type": "circle"},
        {"label": "blue", "points": [[1, 2], [30, 4], [9, 40]], "shape_type": "polygon"},
    ]
    put(tmp_path / "photo 1.json", json.dumps({"shapes": shapes}))
    found = content(checked(read_folder(tmp_path)))
    assert found["photo 1"] == [("grün", 30, 20, 50, 40), ("blue", 1, 2, 30, 40)]


def test_difficult_and_crowded_boxes_are_ignored(tmp_path: Path) -> None:
    folders.voc_in_one_folder(tmp_path)
    text = xml(scenes()[0]).replace("<difficult>0", "<difficult>1")
    put(tmp_path / "photo 0.xml", text)
    found = read_folder(tmp_path)
    assert [p.file.stem for p in found.photos if any(b.ignored for b in p.boxes)] == ["photo 0"]
    converted = json.loads(by_split(checked(found))["all"])
    assert sum(entry["iscrowd"] for entry in converted["annotations"]) == 1
    put(tmp_path / "coco/instances.json", json.dumps(converted))
    again = read_folder(tmp_path / "coco")
    assert sum(box.ignored for photo in again.photos for box in photo.boxes) == 1


def test_the_same_name_in_two_folders_is_two_images(tmp_path: Path) -> None:
    for part in ("a", "b"):
        for scene in scenes(2 if part == "a" else 3):
            paint(scene, tmp_path / f"{part}/images/{scene.stem}.jpg")
            put(tmp_path / f"{part}/labels/{scene.stem}.txt", txt(scene))
    found = read_folder(tmp_path)
    assert len(found.photos) == 5
    assert found.findings.lines() == []
    assert found.classes == ("0", "1", "2")


def test_a_folder_without_labels_says_what_to_do(tmp_path: Path) -> None:
    paint(scenes()[0], tmp_path / "photos/a.jpg")
    (tmp_path / "empty").mkdir()
    folders.yolo_flat(tmp_path / "yolo")
    for path in (tmp_path / "yolo").glob("*.jpg"):
        path.unlink()
    folders.coco_layout(tmp_path / "coco")
    shutil.rmtree(tmp_path / "coco/train2017")
    shutil.rmtree(tmp_path / "coco/val2017")
    for name, words in (
        ("photos", r"has 1 image and no annotations \(.*\): label some first, or quantize"),
        ("empty", "has no images"),
        ("nowhere", "is not a folder"),
        ("photos/a.jpg", "is not a folder"),
        ("yolo", "no image with a box|has no images"),
        ("coco", "no image with a box: 10 listed images that are missing"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            read_folder(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="--format yol is not known; did you mean yolo"):
        read_folder(tmp_path / "photos", "yol")


def test_hidden_files_and_circles_of_links_are_passed_over(tmp_path: Path) -> None:
    folders.yolo_flat(tmp_path)
    paint(scenes()[0], tmp_path / ".cache/x.jpg")
    paint(scenes()[0], tmp_path / "__MACOSX/x.jpg")
    (tmp_path / "self").symlink_to(tmp_path)
    assert len(read_folder(tmp_path).photos) == 10
