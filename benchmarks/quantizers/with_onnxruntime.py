"""Quantize a float model with ONNX Runtime's own tool: QDQ, per channel, symmetric weights."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.calibrate import HistogramCalibrater

INPUT = "images"
METHODS = {
    "min_max": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Yields calibration images one at a time.

    Args:
        images: Each ``(C, H, W)``.
    """

    def __init__(self, images: Iterable[np.ndarray]) -> None:
        self.batches: Iterator[Mapping[str, np.ndarray]] = iter(
            [{INPUT: image[None]} for image in images]
        )

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """Return the next image, or None after the last."""
        return next(self.batches, None)


def quantize(source: Path, images: Path, path: Path, method: str = "min_max") -> None:
    """Write the quantized model, whole or not at all.

    Args:
        source: The float model.
        images: The calibration images.
        path: The file to write.
        method: A key of `METHODS`.
    """
    draft = path.with_suffix(".draft")
    with _only_errors_logged(), _one_image_at_a_time():
        quantize_static(
            onnx.load(source),
            draft,
            Images(np.load(images)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[method],
            extra_options={"WeightSymmetric": True},
        )
    draft.replace(path)


@contextlib.contextmanager
def _only_errors_logged() -> Iterator[None]:
    """Quieten a tool that logs on the root logger; the level is restored."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


@contextlib.contextmanager
def _one_image_at_a_time() -> Iterator[None]:
    """Let the tool count each image by itself: it keeps all values of all images otherwise."""
    collect = HistogramCalibrater.collect_data

    def collect_one_by_one(self: Any, reader: CalibrationDataReader) -> None:
        while (batch := reader.get_next()) is not None:
            collect(self, Images(batch[INPUT]))

    HistogramCalibrater.collect_data = collect_one_by_one
    try:
        yield
    finally:
        HistogramCalibrater.collect_data = collect


if __name__ == "__main__":
    quantize(*map(Path, sys.argv[1:4]), sys.argv[4])
