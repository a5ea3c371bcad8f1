"""Quantize a float model with NVIDIA's Model-Optimizer; METHOD is its calibration method."""

import sys
from pathlib import Path

import numpy as np
from modelopt.onnx.quantization import quantize


def main(source: str, images: str, out: str, method: str) -> None:
    """Write the model with QDQ nodes, calibrated on the CPU."""
    draft = Path(out).with_suffix(".draft.onnx")
    quantize(
        source,
        quantize_mode="int8",
        calibration_data={"images": np.load(images)},
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(draft),
    )
    draft.replace(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
