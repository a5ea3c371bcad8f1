"""Small folders of labelled photographs: the same scenes in every format and layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("red thing", "grün", "blue")
COLOURS = ((220, 40, 40), (40, 200, 60), (50, 60, 230))
SIZE = (96, 64)


@dataclass(frozen=True, slots=True)
class Scene:
    """One photograph: its stem and ``(class, x1, y1, x2, y2)`` of each box."""

    stem: str
    boxes: tuple[tuple[int, int, int, int, int], ...]


def scenes(number: int = 10) -> list[Scene]:
    rng = np.random.default_rng(0)
    found = []
    for index in range(number):
        boxes = []
        for place in range(1 + index % 3):
            x, y = 4 + 30 * place, int(rng.integers(2, 20))
            width, height = (int(v) for v in rng.integers(12, 28, 2))
            boxes.append((index % 3 if place == 0 else place % 3, x, y, x + width, y + height))
        found.append(Scene(f"photo {index}", tuple(boxes)))
    return found


def paint(scene: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(scene.boxes))
    pixels = rng.integers(60, 200, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
    for label, x1, y1, x2, y2 in scene.boxes:
        pixels[y1:y2, x1:x2] = COLOURS[label]
    Image.fromarray(pixels).save(path, "PNG" if path.suffix.lower() == ".png" else "JPEG")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def xml(scene: Scene, name: str = "x.jpg") -> str:
    things = "".join(
        f"<object><name>{CLASSES[c]}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for c, x1, y1, x2, y2 in scene.boxes
    )
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{things}</annotation>"


def txt(scene: Scene) -> str:
    lines = [
        f"{c} {(x1 + x2) / 2 / SIZE[0]} {(y1 + y2) / 2 / SIZE[1]} {(x2 - x1) / SIZE[0]}"
        f" {(y2 - y1) / SIZE[1]}"
        for c, x1, y1, x2, y2 in scene.boxes
    ]
    return "\n".join(lines) + "\n"


def labelme(scene: Scene, name: str) -> str:
    shapes: list[dict[str, Any]] = [
        {"label": CLASSES[c], "points": [[x2, y1], [x1, y2]], "shape_type": "rectangle"}
        for c, x1, y1, x2, y2 in scene.boxes
    ]
    size = {"imageWidth": SIZE[0], "imageHeight": SIZE[1]}
    return json.dumps({"version": "5", "shapes": shapes, "imagePath": name, **size})


def coco(chosen: Sequence[Scene], name: Callable[[Scene], str], head: bool = False) -> str:
    images, annotations = [], []
    for number, scene in enumerate(chosen):
        images.append({"id": number, "file_name": name(scene), "width": SIZE[0], "height": SIZE[1]})
        for c, x1, y1, x2, y2 in scene.boxes:
            own = {"image_id": number, "category_id": c + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            annotations.append({"id": len(annotations), **own})
    categories = [{"id": n, "name": name, "supercategory": "things"}
                  for n, name in enumerate(CLASSES, 1)]  # fmt: skip
    if head:
        categories.insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def halves(all_scenes: Sequence[Scene]) -> dict[str, list[Scene]]:
    return {"train": list(all_scenes[:7]), "valid": list(all_scenes[7:])}


def voc(root: Path) -> None:
    for scene in scenes():
        paint(scene, root / f"JPEGImages/{scene.stem}.jpg")
        put(root / f"Annotations/{scene.stem}.xml", xml(scene))
    for split, chosen in halves(scenes()).items():
        name = {"valid": "val"}.get(split, split)
        put(root / f"ImageSets/Main/{name}.txt", "\n".join(s.stem for s in chosen) + "\n")
        put(root / f"ImageSets/Main/blue_{name}.txt", "\n".join(f"{s.stem} -1" for s in chosen))


def voc_without_lists(root: Path) -> None:
    for scene in scenes():
        paint(scene, root / f"deep/JPEGImages/{scene.stem}.JPG")
        put(root / f"deep/Annotations/{scene.stem}.XML", xml(scene))


def voc_in_one_folder(root: Path) -> None:
    for scene in scenes():
        paint(scene, root / f"{scene.stem}.png")
        put(root / f"{scene.stem}.xml", xml(scene))


def voc_by_split(root: Path) -> None:
    for split, chosen in halves(scenes()).items():
        for scene in chosen:
            paint(scene, root / split / f"{scene.stem}.jpg")
            put(root / split / f"{scene.stem}.xml", xml(scene))


def coco_layout(root: Path) -> None:
    for split, chosen in halves(scenes()).items():
        name = {"valid": "val2017", "train": "train2017"}[split]
        for scene in chosen:
            paint(scene, root / name / f"{scene.stem}.jpg")
        put(root / f"annotations/instances_{name}.json", coco(chosen, lambda s: f"{s.stem}.jpg"))
        put(root / f"annotations/captions_{name}.json", coco(chosen, lambda s: f"{s.stem}.jpg"))


def coco_of_roboflow(root: Path) -> None:
    for split, chosen in halves(scenes()).items():
        for scene in chosen:
            paint(scene, root / split / f"{scene.stem}.jpg")
        text = coco(chosen, lambda s: f"{s.stem}.jpg", head=True)
        put(root / split / "_annotations.coco.json", text)


def coco_in_one_file(root: Path) -> None:
    for scene in scenes():
        paint(scene, root / f"images/a/{scene.stem}.jpg")
    put(root / "labels.json", coco(scenes(), lambda s: f"C:\\me\\images\\a\\{s.stem}.jpg"))


def yolo_with_yaml(root: Path) -> None:
    for split, chosen in halves(scenes()).items():
        for scene in chosen:
            paint(scene, root / split / f"images/{scene.stem}.jpg")
            put(root / split / f"labels/{scene.stem}.txt", txt(scene))
    names = ", ".join(f"'{name}'" for name in CLASSES)
    text = f"train: ../train/images\nval: ../valid/images\nnc: 3\nnames: [{names}]\n"
    put(root / "data.yaml", text)


def yolo_by_kind(root: Path) -> None:
    for split, chosen in halves(scenes()).items():
        name = {"valid": "val"}.get(split, split)
        for scene in chosen:
            paint(scene, root / f"images/{name}/{scene.stem}.jpg")
            put(root / f"labels/{name}/{scene.stem}.txt", txt(scene))
    names = "".join(f"  {n}: {name}\n" for n, name in enumerate(CLASSES))
    put(root / "things.yaml", f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")


def yolo_flat(root: Path) -> None:
    for scene in scenes():
        paint(scene, root / f"{scene.stem}.jpg")
        put(root / f"{scene.stem}.txt", txt(scene))
    put(root / "classes.txt", "\n".join(CLASSES) + "\n")


def yolo_lists(root: Path) -> None:
    for scene in scenes():
        paint(scene, root / f"obj_data/{scene.stem}.jpg")
        put(root / f"obj_data/{scene.stem}.txt", txt(scene))
    for split, chosen in halves(scenes()).items():
        put(root / f"{split}.txt", "\n".join(f"obj_data/{s.stem}.jpg" for s in chosen))
    put(root / "obj.names", "\n".join(CLASSES))
    put(root / "data.yaml", f"train: train.txt\nval: valid.txt\nnames: {list(CLASSES)}\n")


def labelme_beside(root: Path) -> None:
    for scene in scenes():
        paint(scene, root / f"{scene.stem}.jpg")
        put(root / f"{scene.stem}.json", labelme(scene, f"{scene.stem}.jpg"))


def labelme_apart(root: Path) -> None:
    for split, chosen in halves(scenes()).items():
        for scene in chosen:
            paint(scene, root / f"{split}/imgs/{scene.stem}.JPEG")
            name = f"..\\imgs\\{scene.stem}.JPEG"
            put(root / f"{split}/json/{scene.stem}.json", labelme(scene, name))


# Each layout with its format, and whether it has splits.
LAYOUTS: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "voc": (voc, "voc", True),
    "voc_without_lists": (voc_without_lists, "voc", False),
    "voc_in_one_folder": (voc_in_one_folder, "voc", False),
    "voc_by_split": (voc_by_split, "voc", True),
    "coco": (coco_layout, "coco", True),
    "coco_of_roboflow": (coco_of_roboflow, "coco", True),
    "coco_in_one_file": (coco_in_one_file, "coco", False),
    "yolo_with_yaml": (yolo_with_yaml, "yolo", True),
    "yolo_by_kind": (yolo_by_kind, "yolo", True),
    "yolo_flat": (yolo_flat, "yolo", False),
    "yolo_lists": (yolo_lists, "yolo", True),
    "labelme_beside": (labelme_beside, "labelme", False),
    "labelme_apart": (labelme_apart, "labelme", True),
}
