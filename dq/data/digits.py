"""Write the digits data set: handwritten digits over photographs, in the Pascal VOC layout.

It is a few megabytes, made in seconds from installed packages, so that every command can be tried
on any machine without a download. The same arguments give the same bytes with the same versions of
Pillow and numpy.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from dq.counted import counted
from dq.data.disk import explained, whole_folder
from dq.data.layout import (
    VocBox,
    annotation_path,
    annotation_xml,
    image_path,
    image_set_path,
    write_image_set,
)
from dq.data.originals import read_originals
from dq.data.scene import MIN_DIGIT_SIZE, Scene, draw_scene

log = logging.getLogger(__name__)

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STAMP = "digits.json"
_FORMAT = 1  # Increase this when the same arguments draw something else.
_SPLITS = ("train", "val", "test")
_MIN_IMAGE_SIZE, _MAX_IMAGE_SIZE = 3 * MIN_DIGIT_SIZE, 1024


def write_digits(
    folder: Path,
    *,
    num_train: int = 600,
    num_val: int = 100,
    num_test: int = 200,
    image_size: int = 192,
    seed: int = 0,
) -> Path:
    """Write the data set of these arguments to `folder`, and return the folder.

    If it exists already, nothing is done. It is written next to the folder and renamed, so it is
    complete or missing. Its digits must not be mirrored: train without random flip.

    Args:
        folder: New, empty, or written with the same arguments.
        num_train: Images in `train`; `trainval` has these and those of `val`.
        num_val: Images in `val`.
        num_test: Images in `test`.
        image_size: Width and height in pixels.
        seed: Another seed draws other scenes; more images do not change the first ones.

    Raises:
        ValueError: An argument is out of range, the folder has other content or cannot be written,
            or the `demo` extra is missing.
        RuntimeError: The disk is full.
    """
    counts = {"train": num_train, "val": num_val, "test": num_test}
    _check_arguments(counts, image_size, seed)
    arguments = {
        "format": _FORMAT,
        **{f"num_{split}": count for split, count in counts.items()},
        "image_size": image_size,
        "seed": seed,
    }
    with explained(folder):
        if _is_written(folder, arguments):
            return folder
        try:
            with whole_folder(folder) as temporary:
                _write_all(temporary, counts, image_size, seed)
                stamp = {**arguments, "sha256": _digest(temporary)}
                (temporary / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
        except OSError:
            # Another process may have written the same data set in the meantime.
            if not _is_written(folder, arguments):
                raise
    return folder


def _check_arguments(counts: Mapping[str, int], image_size: int, seed: int) -> None:
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f"num_{split} is {count}: give each split one image or more")
    if not _MIN_IMAGE_SIZE <= image_size <= _MAX_IMAGE_SIZE:
        raise ValueError(
            f"image_size is {image_size}: give {_MIN_IMAGE_SIZE} to {_MAX_IMAGE_SIZE} pixels"
        )
    if seed < 0:
        raise ValueError(f"seed is {seed}: give 0 or more")


def _is_written(folder: Path, arguments: Mapping[str, int]) -> bool:
    """Return whether the folder has this data set, complete; refuse a folder with other content."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    fix = "delete it, or name another folder"
    if not (folder / STAMP).is_file():
        raise ValueError(f"{folder} holds something else than the digits: {fix}")
    try:
        stamp = dict(json.loads((folder / STAMP).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / STAMP} cannot be read ({error}): {fix}") from error
    digest = stamp.pop("sha256", None)
    for name, value in arguments.items():
        if stamp.get(name) != value:
            raise ValueError(
                f"{folder} was written with {name} {stamp.get(name)}, not {value}: {fix}"
            )
    if digest != _digest(folder):
        raise ValueError(f"{folder} has been changed since it was written: {fix}")
    return True


def _write_all(folder: Path, counts: Mapping[str, int], image_size: int, seed: int) -> None:
    for path in (image_path(folder, ""), annotation_path(folder, ""), image_set_path(folder, "")):
        path.parent.mkdir(parents=True)
    ids: dict[str, list[str]] = {}
    for number, split in enumerate(_SPLITS):
        originals = read_originals(split)
        ids[split] = [f"{split}_{index:05d}" for index in range(counts[split])]
        for index, image_id in enumerate(ids[split]):
            rng = np.random.default_rng([seed, number, index])
            _write_scene(folder, image_id, draw_scene(originals, image_size, rng))
        log.info("drew %s of %s", counted(counts[split], "image[s]"), split)
    ids["trainval"] = ids["train"] + ids["val"]
    for split, image_ids in ids.items():
        write_image_set(folder, split, image_ids)


def _write_scene(folder: Path, image_id: str, scene: Scene) -> None:
    boxes = [
        VocBox(
            name=CLASSES[digit.label],
            xmin=digit.left + 1,
            ymin=digit.top + 1,
            xmax=digit.right,
            ymax=digit.bottom,
        )
        for digit in scene.digits
    ]
    height, width = scene.picture.shape[:2]
    xml = annotation_xml(
        image_id, (width, height), boxes, database="digits", source=scene.photograph
    )
    annotation_path(folder, image_id).write_bytes(xml)
    # mmdet expects .jpg; at this quality and without chroma subsampling, the loss is invisible.
    Image.fromarray(scene.picture).save(
        image_path(folder, image_id), format="JPEG", quality=95, subsampling=0
    )


def _digest(folder: Path) -> str:
    """Return a sha256 over every annotation and list, and over the images' names and sizes."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name == STAMP:
            continue
        with contextlib.suppress(FileNotFoundError):  # Removed at this moment: a changed folder.
            size = path.stat().st_size
            total.update(f"{path.relative_to(folder).as_posix()}\n{size}\n".encode())
            if path.suffix != ".jpg":
                total.update(path.read_bytes())
    return total.hexdigest()
