"""Quantize a float model with NNCF, for ONNX Runtime and for OpenVINO.

It runs in a separate environment with nncf, onnx, onnxruntime and openvino, and imports nothing
of this project.

    PYTHON nncf_files.py FLOAT.onnx IMAGES.npy OUT.onnx OUT.xml
"""

import sys

import nncf
import numpy as np
import onnx
import openvino


def main(source: str, images: str, onnx_path: str, openvino_path: str) -> None:
    """Write both files, with NNCF's preset for activation functions other than ReLU."""
    batches = [{"images": image[None]} for image in np.load(images)]
    preset = nncf.QuantizationPreset.MIXED

    def quantized(model: object) -> object:
        dataset = nncf.Dataset(batches)
        return nncf.quantize(model, dataset, preset=preset, subset_size=len(batches))

    onnx.save(quantized(onnx.load(source)), onnx_path)
    openvino.save_model(quantized(openvino.Core().read_model(source)), openvino_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
