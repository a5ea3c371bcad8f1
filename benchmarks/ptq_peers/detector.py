"""The float detector: its ONNX file, its calibration images, and the metric of any other file."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from mmcv import Config

from benchmarks.engines.files import float_recipe, write_float
from dq.detector.config.nested_sections import innermost
from dq.detector.config.read import finish, read_config
from dq.detector.data.datasets import calibration_dataset, calibration_images, dataset_of
from dq.detector.engines.onnx_detector import run_in_engine_
from dq.detector.evaluation.evaluate import detect, main_metric, score
from dq.detector.evaluation.matches import matches_of
from dq.detector.export.write import image_size
from dq.detector.model.graph import quantize_detector
from dq.detector.model.stored_detector import float_detector
from dq.dist.files.checkpoint import load_checkpoint
from dq.quant.verify.onnxruntime_session import ENGINE
from dq.tracking.record.matches import Matches
from dq.whole_file import drafts

CPU = torch.device("cpu")


class Detector:
    """A float detector whose network is replaced by a quantized file, to evaluate the file.

    Args:
        config: File of the config with the data.
        checkpoint: The float checkpoint.
        threads: Of ONNX Runtime.
    """

    def __init__(self, config: Path, checkpoint: Path, *, threads: int) -> None:
        self.config = finish(read_config(config))
        self.threads = threads
        content = load_checkpoint(checkpoint)
        self.detector = float_detector(self.config, content, str(checkpoint), CPU).eval()
        self.size = image_size(self.config, None)
        # Gives the structure of the network's outputs.
        self.traced = copy.deepcopy(self.detector)
        self.graph = quantize_detector(self.traced, float_recipe())

    def write_float(self, path: Path) -> None:
        """Write the network without quantizers."""
        write_float(copy.deepcopy(self.detector), self.size, path)

    def write_images(self, path: Path, num_images: int) -> None:
        """Write the images that `launcher calibrate` draws with seed 0, padded to one size."""
        batches = calibration_images(
            calibration_dataset(self.config), num_images=num_images, batch_size=1, seed=0
        )
        height, width = self.size
        padded = [
            torch.nn.functional.pad(b, (0, width - b.shape[-1], 0, height - b.shape[-2]))
            for b in batches
        ]
        with drafts(path) as (draft,), draft.open("wb") as file:
            np.save(file, torch.cat(padded).numpy())

    def metric(self, path: Path, split: str = "test") -> tuple[str, float]:
        """Return name and value, 0 to 1, of a file's main metric on ``data.<split>``.

        The file runs in ONNX Runtime, as in `launcher eval --backend onnxruntime`.

        Raises:
            ValueError: The file's outputs are not the detector's, or ONNX Runtime refuses it.
        """
        dataset, found = self._found(path, split)
        return main_metric(score(dataset, found, self.config.get("evaluation") or {}))

    def matches(self, path: Path) -> Matches:
        """Return the matched detections of ``data.test``, from which COCO's box metric follows.

        Raises:
            ValueError: As in `metric`, or the data set has another metric.
        """
        matches = matches_of(*self._found(path, "test"))
        if matches is None:
            raise ValueError("only COCO's metric of boxes can be taken apart into images")
        return matches

    def _found(self, path: Path, split: str) -> tuple[Any, list[Any]]:
        model = onnx.load(path)
        # Other tools drop the metadata of our export, so every file gets the same.
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {"preprocessing": json.dumps({"size": self.size})})
        network = ENGINE.open(model, threads=self.threads)
        run_in_engine_(self.traced, self.graph, {"": network})
        dataset = dataset_of(self.config, split, test_mode=True, quiet=True)
        return dataset, detect(self.traced, dataset, device=CPU, workers=0) or []


def write_config(
    config: Path,
    folder: Path,
    *,
    calibrate: Path,
    evaluate: Path,
    images: Path,
    num_images: int,
) -> tuple[Path, Any, int]:
    """Write the config of this comparison.

    `data.train` and `data.val` are the calibration images, so a tool that is guided by a metric is
    guided by theirs. The metric is COCO's. In the returned config `data.test` has a single image,
    so that the commands' own evaluation hardly adds to their time.

    Args:
        config: The detector's.
        folder: For the files.
        calibrate: COCO file of the calibration images.
        evaluate: COCO file of the evaluated images.
        images: Folder of all images.
        num_images: Largest number of calibration images.

    Returns:
        The file, the config for our commands, and the number of calibration images.
    """
    there = min(num_images, len(json.loads(calibrate.read_text())["images"]))
    batch = min(8, there)
    batches = there // batch
    content = Config.fromfile(str(config))
    for part, file in (("train", calibrate), ("val", calibrate), ("test", evaluate)):
        place = {"ann_file": str(file.resolve()), "img_prefix": str(images.resolve())}
        for section in innermost(content.data[part]):
            section.update(place, type="CocoDataset")
    content.evaluation = {"metric": "bbox"}
    content.quant = {"schedule": {"calibration_batches": batches, "calibration_batch_size": batch}}
    path = folder / "config.py"
    content.dump(str(path))
    short = copy.deepcopy(content)
    one_image = _one_image(evaluate, folder / "one_image.json")
    for section in innermost(short.data.test):
        section.ann_file = str(one_image.resolve())
    return path, short, batches * batch


def _one_image(annotations: Path, path: Path) -> Path:
    content = json.loads(annotations.read_text())
    first = content["annotations"][0]["image_id"]

    def of_first(rows: Sequence[Any], key: str) -> list[Any]:
        return [row for row in rows if row[key] == first]

    content["images"] = of_first(content["images"], "id")
    content["annotations"] = of_first(content["annotations"], "image_id")
    path.write_text(json.dumps(content))
    return path
