"""A data set of images without annotations: all images of a folder, and boxes found in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv import ConfigDict
from mmdet.datasets import DATASETS, CustomDataset
from PIL import Image

from dq.data.pictures import SUFFIXES, size_in
from dq.detector.metrics.coco_metric import coco_metrics
from dq.detector.metrics.results import labelled_boxes

KIND = "ImageFolderDataset"
# A detector's own boxes count as the truth from this score on.
LOWEST_SCORE = 0.3
# If there are fewer than one box per two images, the score is lowered to get this many per image.
FEWEST = 10

Boxes = Mapping[str, Sequence[Sequence[float]]]


def image_files(folder: Path, without: Path | None = None) -> list[str]:
    """Return the images of a folder and its subfolders, relative to it, in order.

    Hidden files and folders are left out, such as macOS's ``._IMG.JPG``, which is no image.

    Args:
        folder: The folder.
        without: A folder inside it whose images are left out, such as a work dir with drawings. If
            it is not inside, it has no effect.

    Raises:
        ValueError: It does not exist, or has no images.
    """
    if not folder.is_dir():
        raise ValueError(f"--images {folder} is not a folder")
    # If the folder is the work dir or inside it, the user wants these very images.
    inner = without if without is not None and without.is_relative_to(folder) else None
    inner = None if inner == folder else inner
    found = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (inner and path.is_relative_to(inner))
        and path.is_file()
    )
    if not found:
        raise ValueError(f"--images {folder} has no images ({', '.join(SUFFIXES)})")
    return found


@DATASETS.register_module()
class ImageFolderDataset(CustomDataset):  # type: ignore[misc]
    """The images of a folder, in the order of their names.

    It has no annotations. With ``boxes``, the boxes that a detector found, it can be evaluated: the
    metric then says how much another detector agrees with that one.

    Args:
        img_prefix: The folder.
        boxes: A JSON file of what `confident_boxes` returns.
        part: ``(first, step)``: take image ``first`` and every ``step``-th one after it.
        without: As for `image_files`.
        kwargs: As for mmdet's CustomDataset.
    """

    def __init__(
        self,
        img_prefix: str,
        boxes: str | None = None,
        part: tuple[int, int] = (0, 1),
        without: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.part = part
        self.without = None if without is None else Path(without)
        self.boxes: Boxes = json.loads(Path(boxes).read_text()) if boxes else {}
        super().__init__(ann_file=img_prefix, img_prefix=img_prefix, **kwargs)

    def load_annotations(self, ann_file: str) -> list[dict[str, Any]]:
        """Return name and size of each image.

        Raises:
            ValueError: An image cannot be read; it is named.
        """
        folder = Path(ann_file)
        first, step = self.part
        infos = []
        for name in image_files(folder, self.without)[first::step]:
            try:
                with Image.open(folder / name) as image:
                    width, height = size_in(image, turned=True)
            except Exception as error:  # a broken header may raise anything
                raise ValueError(
                    f"image {folder / name} cannot be read ({error}); repair or remove it"
                ) from error
            infos.append({"filename": name, "width": width, "height": height})
        return infos

    def get_ann_info(self, idx: int) -> dict[str, Any]:
        """Return the boxes of an image, ``(n, 4)``, and their labels, ``(n,)``."""
        rows = np.asarray(self.boxes.get(self.data_infos[idx]["filename"], ()), dtype=np.float32)
        rows = rows.reshape(-1, 5)
        return {
            "bboxes": rows[:, :4],
            "labels": rows[:, 4].astype(np.int64),
            "bboxes_ignore": np.zeros((0, 4), dtype=np.float32),
            "labels_ignore": np.zeros((0,), dtype=np.int64),
        }

    def evaluate(self, results: Sequence[Any], logger: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return COCO's box metric against ``boxes``.

        Args:
            results: mmdet's results of all images, in order.
            logger: Not used.
            kwargs: Not used: settings of the config are for its own data sets.
        """
        return dict(coco_metrics(self, results))


def section(
    folder: Path, classes: Sequence[str], pipeline: Any, part: tuple[int, int], boxes: Path | None
) -> ConfigDict:
    """Return the config section of an `ImageFolderDataset` in test mode.

    Args:
        folder: The images.
        classes: Names by label.
        pipeline: A test pipeline.
        part: As for the data set.
        boxes: As for the data set; None without.
    """
    found: dict[str, Any] = {
        "type": KIND,
        "img_prefix": str(folder),
        "classes": tuple(classes),
        "pipeline": pipeline,
        "part": part,
        "test_mode": True,
    }
    if boxes is not None:
        found["boxes"] = str(boxes)
    return ConfigDict(found)


def training_pipeline(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a test pipeline as one for training without annotations: images and random flips.

    Args:
        pipeline: With or without mmdet's MultiScaleFlipAug.
    """
    found: list[dict[str, Any]] = []
    for step in pipeline:
        if step["type"] != "MultiScaleFlipAug":
            found.append(dict(step))
            continue
        scale = {key: step[key] for key in ("img_scale", "scale_factor") if step.get(key)}
        for inner in step["transforms"]:
            resizes = inner["type"] == "Resize"
            found.append({**inner, **scale} if resizes else dict(inner))
    # Unlike ImageToTensor, it lets mmcv pad images of different sizes to one batch.
    bundle = {"type": "DefaultFormatBundle"}
    steps = [bundle if step["type"] == "ImageToTensor" else step for step in found]
    steps = [step for step in steps if step["type"] != "RandomFlip"]
    # A flip needs an array of pixels, so it comes before the formatting into a tensor.
    sized = [n for n, step in enumerate(steps) if step["type"].startswith(("Load", "Resize"))]
    steps.insert(max(sized, default=-1) + 1, {"type": "RandomFlip", "flip_ratio": 0.5})
    return steps


def confident_boxes(dataset: ImageFolderDataset, results: Sequence[Any]) -> dict[str, Any]:
    """Return the boxes that count as the truth of each image, by its name.

    Args:
        dataset: The images.
        results: mmdet's results of all images, in order.

    Returns:
        Rows ``(x1, y1, x2, y2, label)``.
    """
    rows = [labelled_boxes(result) for result in results]
    scores = sorted((row[4] for own in rows for row in own), reverse=True)
    lowest = LOWEST_SCORE
    # One limit for all images: then the detector that found the boxes has a metric of 100 %.
    if scores and 2 * sum(score >= lowest for score in scores) < len(rows):
        lowest = scores[min(len(scores), FEWEST * len(rows)) - 1]
    found = [[[*row[:4], float(row[5])] for row in own if row[4] >= lowest] for own in rows]
    names = [info["filename"] for info in dataset.data_infos]
    return dict(zip(names, found, strict=True))
