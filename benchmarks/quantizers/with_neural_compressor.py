"""Quantize a float model with Neural Compressor for ONNX: QDQ, per channel, symmetric weights.

METHOD is ``static`` or ``smooth_quant``.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import CalibrationMethod, QuantFormat, config, quantize


class Images(data_reader.CalibrationDataReader):
    """Yields calibration images one at a time; starts again after ``rewind``."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.rewind()

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """Return the next image, or None after the last."""
        return next(self.batches, None)

    def rewind(self) -> None:
        """Start again."""
        self.batches = iter([{"images": image[None]} for image in self.images])


def main(source: str, images: str, out: str, method: str) -> None:
    """Write the quantized model."""
    batches = np.load(images)
    settings = config.StaticQuantConfig(
        calibration_data_reader=Images(batches),
        calibrate_method=CalibrationMethod.MinMax,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        calibration_sampling_size=len(batches),
        execution_provider="CPUExecutionProvider",
        extra_options={"WeightSymmetric": True, "SmoothQuant": method == "smooth_quant"},
    )
    draft = Path(out).with_suffix(".draft.onnx")
    quantize(source, str(draft), settings)
    draft.replace(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
