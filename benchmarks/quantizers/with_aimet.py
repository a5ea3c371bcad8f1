"""Quantize a float model with AIMET; METHOD is its quant_scheme."""

import sys
from pathlib import Path

import aimet_onnx
import numpy as np
import onnx


def main(source: str, images: str, out: str, method: str) -> None:
    """Write the model with QDQ nodes: 8 bits, weights per channel."""
    model = onnx.load(source)
    batches = [{"images": image[None]} for image in np.load(images)]
    sim = aimet_onnx.QuantizationSimModel(
        model,
        param_type=aimet_onnx.int8,
        activation_type=aimet_onnx.int8,
        quant_scheme=method,
        config_file="default",
        providers=["CPUExecutionProvider"],
    )
    sim.compute_encodings(batches)
    draft = Path(out).with_suffix(".draft")
    onnx.save(sim.to_onnx_qdq(prequantize_constants=True), draft)
    draft.replace(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
